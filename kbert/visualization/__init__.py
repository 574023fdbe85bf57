"""Plots and pages: learning curves, confusion matrices, attention."""
