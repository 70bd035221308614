"""A set handed on: written again in the layout that another trainer reads. docs/handing-on.md.

set -> checked batch -> columns of the target -> files by split -> README.md -> published

base.py             what a target is
targets.py          the table of targets
columns.py          what targets share: masks, replies, the pairs of KTO
hf.py               TRL, Unsloth, Transformers' Trainer, axolotl
llamafactory.py     LLaMA-Factory's tokenized_path
megatron_bridge.py  packed Parquet of Megatron-Bridge
messages.py         the conversations as OpenAI's messages, read again from the sources
files.py            the files of a split
card.py             README.md of the folder
folder.py           the folder: written aside, marked, and put in its place whole
convert.py          a conversion from its checks to its card: start reading here
"""
