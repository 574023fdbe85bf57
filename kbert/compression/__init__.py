"""Smaller models: pruning of attention heads and weights, and distillation."""
