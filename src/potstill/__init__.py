"""Potstill: distil a hosted model into a small model of your own, and answer at the lowest cost."""

__version__ = "0.1.0"
