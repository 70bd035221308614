"""Chat templates lowered to programs: text, control tokens and what is generated."""
