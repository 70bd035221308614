"""What `cli inspect` shows and checks: rows of a published set, token by token, read from the set alone.

    from compiler.inspect import Query, show
    ok = show(CompiledSet.open(folder), Query(find="Bergen"), rejected=False, checks=("tool:0",), style="text")

1. Only batches whose digest is the manifest's are read, and only a tokenizer whose files are: damage is one message.
2. Searching and checking go over columns, a batch at a time; token by token is only for the rows that are shown.
3. The data cannot forge a mark or reach the terminal as a command.

    module          what it knows
    rows.py         the batches of a split and the files beside them, each checked against its digest
    vocabulary.py   the set's own tokenizer: the bytes of every id
    tokens.py       one row decoded; the keys of `--json`
    choose.py       which rows and rejects are asked for, and how many there are beside them
    find.py         rows by number, source, dataset or text
    check.py        `--assert`: what may not be trained, over all rows
    show.py         what is printed: text, ChatGLM3's sanity check, JSON; rejects; the result of checks
    page.py         the text: where a row is from, how much of it is trained, its lines
    lines.py        a row's tokens laid out on lines, with every mark
    marks.py        the marks and colours, and characters that could be taken for one
"""

from compiler.inspect.choose import Query
from compiler.inspect.show import show

__all__ = ["Query", "show"]
