"""Step 2, lift: a row's value becomes conversations, or a reject with its pointer. Nothing here knows a template.

row -> unpack -> mend -> validate -> persona -> lift (formats) -> repair -> clean -> turns, ReAct, media -> conversation

lift.py       these steps, in order
where.py      rows chosen by their columns (--where)
unpack.py     lists that rows hold as JSON text, nulls that unions add
mend.py       repairs of raw rows, before they are validated
validate.py   rows against the JSON Schema of their format, with the user's names in it
keys.py       the keys of a row that its format does not read
checks.py     both for a dataset, made once
recognise.py  the format of a file, by its first rows
nearest.py    the format that rows come nearest to when they fit none
persona.py    self-cognition: the model's name in place of placeholders
repair.py     repairs of conversations
calls.py      calls in consecutive messages and in blocks of text, as one reply makes them
texts.py      placeholders, another template's markers and empty replies in texts
shingles.py   the words of a conversation, for near duplicates
overlap.py    conversations that benchmarks have (--decontaminate)
secrets.py    secrets in texts, counted or replaced by placeholders
secret_rules.py  what a secret looks like
clean.py      the clean-up rules of a dataset's card
media.py      the images and videos of a row: found, measured, counted in tokens
objects.py    <ref-object> and <bbox> in texts, written as the model writes boxes
hints.py      the repairs that would make a rejected row good
react/        ReAct text: parsed, checked, written
"""
