"""Training and judging a tokenizer."""
