"""One run: its plan and checks, DeepSpeed, steps, checkpoints, evaluation, logs."""
