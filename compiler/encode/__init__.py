"""Step 3, encode: conversations become ids, labels and weights. From here on there are only columns.

conversation -> segments -> runs, weights -> shape -> tokens of a batch -> length -> columns

sequences.py  a conversation to its sequences: one, the two of a pair, or one per reply
replies.py    which replies are trained at all
weigh.py      which characters of a reply are trained, and how much
runs.py       what of a conversation is encoded at once
shapes.py     what the runs of all rows of one shape share
tokens.py     the runs of a batch to ids, labels and weights
places.py     which tokens belong to which piece of a run
batch.py      encoded sequences as columns
length.py     what happens to examples longer than --max-length
columns.py    a batch of examples as Arrow columns
system.py     `--system merge`
"""
