"""One loop for every training, and what it keeps: checkpoints, averages, metrics, documents of a run."""
