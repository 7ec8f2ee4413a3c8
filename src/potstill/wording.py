"""Small grammar of what is said to people. Pure."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number and what is counted: `1 role`, `2 roles`. `noun` is in the singular and takes a plain s: `batch job`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
