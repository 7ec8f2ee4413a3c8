"""Estimate before, report after, compare the alternatives."""
