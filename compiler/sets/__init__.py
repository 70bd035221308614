"""Step 5, link: objects become a set.

objects -> mix -> plan of rows -> (pack) -> link -> shards -> manifest -> published

mix.py         which row of which dataset goes where, how often, in which order
validation.py  which rows are for validation: whole conversations
pack.py        examples combined into packs
rows.py        all compiled rows of a run, by number
words.py       tokens of any rows, copied from the files of objects
estimate.py    what a compile would give, by a sample of its units
link.py        a split as shards
embedded.py    images that rows held, linked from the cache into the set
shard.py       one shard: an Arrow file, hashed while it is written
prints.py      fingerprints: which rows repeat another
near.py        near duplicates, and the row that stays in their place
asked.py       the options and origins of a set, for its manifest
manifest.py    the manifest, and the balance that accounts for every row
rejects.py     rejects.jsonl, and the end of a run with too many of them
readme.py      README.md of a set, which the `datasets` library reads too
folder.py      a set in a folder: locked, written aside, exchanged with the old one
own.py         what in a folder is a set's own, and what runs leave there
store.py       a set in an object store: published by one conditional put
verify.py      every byte of a set against its manifest
again.py       the plan of a set, made again from its sources
contents.py    the manifest against the rows: counts, tokens, balance, provenance
"""
