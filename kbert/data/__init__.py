"""Batches: pairs and masks of pretraining, labelled examples, and the files they are read from."""

from kbert.data.pretraining_batches import pretraining_dataset

__all__ = ["pretraining_dataset"]
