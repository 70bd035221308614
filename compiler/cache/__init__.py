"""Step 4, keep: objects and records in the cache, and their removal.

objects.py  store and load compiled units
records.py  names, digests of everything that decides the bytes, and what is kept as JSON under one
layout.py   the words of a row side by side in an object
small.py    its other columns in memory, in few bytes
halves.py   files that are written as a whole or not at all
prune.py    what is in the cache, whether it is whole, what to remove; the lock that compiles share
"""
