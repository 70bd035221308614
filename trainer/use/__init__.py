"""After training: export and chat."""
