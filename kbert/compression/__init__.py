"""Smaller models: pruning of attention heads and of single weights, and learning from a teacher."""
