"""Pictures to train on, to compare and to look at."""
