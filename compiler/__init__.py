"""The compiler: source rows -> objects -> shards. Start reading at `pipeline.py`."""
