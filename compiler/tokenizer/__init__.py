"""A model's tokenizer: its files are read as data, texts become ids, and control tokens are kept apart from text.

`tokenizer.Tokenizer.load(folder)` is what other rooms use. From the bottom up:

- convert: vocabulary files that are no tokenizer.json
- files: the files found in a folder, parsed
- vocabulary: what they say of texts and ids
- encoders: texts to ids, by the reference encoder and by the fast one
- tokenizer: a vocabulary with its encoders
"""
