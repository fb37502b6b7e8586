"""Sources: where rows come from, one class each; `docs/sources.md` compares them."""
