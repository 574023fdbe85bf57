"""Predictions: the Predictor, batches of examples of any length, and what computes the model."""
