"""From shards to batches: order, streaming, collation, images."""
