"""What several test modules use: real tokenizers, tiny models, a store, random conversations, and second opinions."""
