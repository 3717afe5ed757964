"""A fine-tuning cookbook: the plumbing that its notebooks share, so that they can show the technique."""

__version__ = "0.1.0"
