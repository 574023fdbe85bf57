"""Data: sentence pairs and masking, batches for pretraining and fine-tuning, example files."""

__all__ = ["pretraining_dataset"]


def __getattr__(name):
    if name != "pretraining_dataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kbert.data.pretraining_batches import pretraining_dataset  # imports TensorFlow

    return pretraining_dataset
