"""What a screen agent (CogAgent) is told and what it answers: its prompts, replies and operations, parsed."""
