"""ReAct text: replies that think, call a tool and read its result in lines that begin with a keyword."""
