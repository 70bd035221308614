"""Rows of a set become batches. What is trained when is arithmetic, so a resume needs one number.

order -> stream (store) -> collate (images) -> loader -> batch

order.py    which process trains which rows of a step (which rows a step has: schemas/steps.py)
stream.py   any row of a set, every batch of a shard checked
store.py    batches of a set in an object store, kept on disk
collate.py  rows to tensors
media.py    the folder of images, where the configuration names none
images.py   pictures and videos, loaded and checked when their batch is made
vision/     how each family of models takes them
loader.py   coming batches, made by threads while the device works
reference.py    log-probabilities of a reference, in a file beside the checkpoints
"""
