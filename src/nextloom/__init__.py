"""NextLoom: the data pipeline and training system around the NextFlow model (arXiv 2601.02204)."""

__version__ = "0.1.0"
