"""One run: its plan and checks, the engine and its steps, checkpoints, evaluation, logs."""
