"""The trainer: streams compiled shards into a model. It never tokenizes; its contract is `schemas/`."""
# finetune-data-compiler: by this name cli.py knows its own packages.
