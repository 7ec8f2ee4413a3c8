"""Tests: unit, contract, end to end, and of the repository itself."""
