"""Smaller models: which attention heads can be removed."""
