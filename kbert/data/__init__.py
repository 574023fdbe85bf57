"""Batches: pairs and masks of pretraining, labelled examples, and the files they are read from."""

__all__ = ["pretraining_dataset"]


def __getattr__(name):
    if name != "pretraining_dataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kbert.data.pretraining_batches import pretraining_dataset  # imports TensorFlow

    return pretraining_dataset
