"""The language of a screen agent (CogAgent), parsed and written: its prompts, replies and operations."""
