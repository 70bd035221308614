"""Helpers of several test modules: real tokenizers, tiny models, an object store, random conversations, a reference."""
