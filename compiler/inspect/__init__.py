"""What `cli inspect` shows and checks: the rows of a compiled set, token by token, read from the set alone.

    from compiler.inspect import Query, show
    ok = show(CompiledSet.open(folder), Query(find="Bergen"), rejected=False, checks=("tool:0",), style="text")

1. Every batch and every tokenizer file is checked against its digest in the manifest: damage is one message.
2. Searches and checks read columns, a batch at a time. Only rows that are shown are decoded token by token.
3. No text of a row can forge a mark or reach the terminal as a command.

    module          what it knows
    rows.py         the examples of a split by number, and the rejects
    vocabulary.py   the set's own tokenizer: the bytes of every id
    tokens.py       one row decoded; the keys of `--json`
    choose.py       the rows and rejects to show, and how many more there are
    find.py         rows by number, source, dataset or text
    check.py        `--assert`: tokens that may not be trained, over all rows
    show.py         what is printed: rows as text, sanity check or JSON; rejects; results of checks
    page.py         a row as text: where it is from, how much of it is trained, its lines
    lines.py        a row's tokens laid out on lines, with every mark
    raw.py          rows that are not compiled: what a compile would read of them
    marks.py        the marks and colours, and how characters that look like a mark are shown
"""

from compiler.inspect.choose import Query
from compiler.inspect.show import show

__all__ = ["Query", "show"]
