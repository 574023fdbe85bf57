"""Smaller models: pruning of attention heads, and distillation."""
