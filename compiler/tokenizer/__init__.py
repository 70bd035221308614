"""Step 3, encode: a model's tokenizer. Texts become ids, and control tokens are kept apart from text.

folder -> files, read as data -> vocabulary + encoders = tokenizer

files.py       the tokenizer files of a folder, parsed
convert.py     vocabulary files that are no tokenizer.json
spec.py        a parsed tokenizer.json, and the forms in which encoders take it
ahead.py       the fast encoder's tables, which may be begun before all else
vocabulary.py  what the files say of texts and ids
encoders.py    texts to ids, by the reference encoder and by the fast one
tokenizer.py   a vocabulary with its encoders: what other rooms use
"""
