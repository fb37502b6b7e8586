"""Training a decoder, and drawing with it."""
