"""Step 5, link: objects become a set.

objects -> mix -> plan of rows -> (pack) -> gather, link -> shards -> manifest -> published

mix.py       which row of which dataset goes where, how often, in which order
pack.py      examples combined into packs
gather.py    rows of many objects as Arrow tables
link.py      shards of a split
manifest.py  the manifest, and the balance that accounts for every row
rejects.py   rejects.jsonl, and the end of a run with too many of them
readme.py    the dataset card of a set
folder.py    a set in a folder: locked, written aside, published by renames
store.py     a set in an object store: published by one conditional put
verify.py    every byte of a set against its manifest
"""
