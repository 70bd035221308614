"""The training configuration: our own YAML, the files of other tools, DeepSpeed's part."""
