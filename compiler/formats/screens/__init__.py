"""The language of a screen agent (CogAgent), parsed and written. Every error has its place in the text.

prompt.py        task, platform, answer format and the history of steps
reply.py         the parts of a reply, and its one operation
operation.py     one operation with its arguments
action_space.py  the operations that there are
recorded.py      actions of other agents as operations, by a table
located.py       errors with their place
"""
