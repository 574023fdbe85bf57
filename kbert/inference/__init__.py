"""Inference: the Predictor, batching of examples of any length, and compute backends."""
