"""Images and videos by reference: where they may lie, what a file says of itself, how many tokens it stands for.

    paths     a reference of a row -> a file under the media folder, or a reject
    probe     a file -> its facts
    image     what the bytes of an image say
    video     what a video file says (needs the extra `video`)
    resize    how a processor resizes a picture and picks frames: arithmetic
    settings  the numbers of a model's processor, from its own files
    rules     a vision card with those numbers: facts -> tokens, and how they are laid out

No pixel is stored: a shard holds references, and the trainer reads the same files again.
"""
