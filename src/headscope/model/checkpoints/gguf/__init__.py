"""Checkpoints in llama.cpp's GGUF files: their container, how each architecture is written in it, and the tokenizer."""
