"""Step 3, encode: the chat template is laid around a conversation, and its text is cut into segments.

conversation -> messages -> jinja -> text -> cut, checks -> segments      rendering: needs no proof
conversation -> skeleton of its shape, texts filled in   -> segments      where proven to be the same

load.py       the template to use: the tokenizer's own, a card's, or none for documents
program.py    segments by rendering or by skeleton, and the proof that both agree
rendering.py  segments by rendering
messages.py   messages as the dictionaries that templates take
jinja.py      Jinja as Transformers sets it up
guard.py      marks that keep a row's words apart from the template's
markup.py     the text of a template, and the control tokens in it
cut.py        text to segments: at generation prompts, stops and control tokens
checks.py     what a rendering is refused for
skeleton.py   the rendering of a shape, with slots for the texts of its rows
history.py    one conversation per reply, where a template changes earlier turns
keep.py       the variables with which a template keeps earlier thinking (--thinking keep)
thinking.py   the thinking in a reply, for templates that take it separately
document.py   a document as segments, without a chat template
"""
