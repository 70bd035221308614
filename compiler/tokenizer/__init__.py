"""A tokenizer's files as the compiler uses them, and the encoders that turn text into ids."""
