"""Questions about finished sets: what became of a source row, how two sets differ, what is in a set or a file.

file         what it knows
why.py       `cli why`: what became of one source row
again.py     what became of the rows that a set does not hold, by its plan made again
    diff.py      `cli diff`: rows and settings of two sets compared
    prints.py    the examples of a set as numbers: identity, and hashes of text, mask and weights
    figures.py   `cli stats` of a set
    raw.py       `cli stats` of files that are not compiled
    alike.py     near duplicates in files and sets
    languages.py the languages of files and sets
    said.py      what the rows of a set say, by their tokens
    table.py     tables of plain text
"""
