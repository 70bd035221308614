"""Step 2, lift: images and videos by reference: the file, its facts, and its number of tokens.

    paths     a reference in a row -> a file under the media folder, or a reject
    probe     a file -> its facts
    image     the facts of an image
    embedded  images that rows hold themselves
    video     the facts of a video file (needs the extra `video`)
    resize    how a processor resizes a picture and samples frames: arithmetic
    one_size  processors that make one number of tokens of every picture
    settings  the numbers of a model's processor, from its own files
    rules     a vision card with those numbers: facts -> tokens and their layout

Pixels are not stored: a shard holds references, and the trainer reads the same files again. Only what a row holds
itself becomes a file of the set.
"""
