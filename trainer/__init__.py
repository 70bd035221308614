"""The trainer: streams compiled shards into a model. It never tokenizes; its contract is `schemas/`."""
