"""The compiler: source rows -> objects -> shards. Start reading at `pipeline.py`."""
# finetune-data-compiler: by this name cli.py knows its own packages.
