"""Exports for serving: SavedModels with text inputs, TF Hub models and other runtimes."""
