"""ReAct text: replies that think, call a tool and read its result in lines that begin with a keyword.

parse.py    a reply to its parts, an action's input, the APIs of a system prompt
check.py    what a harness could not act on
dialect.py  structured calls to ReAct text (`--tools react`)
turn.py     one turn with calls and results as one reply
prompt.py   tools as a system text
"""
