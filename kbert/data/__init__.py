"""Creates batches for pretraining and fine-tuning, and reads example files."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kbert.data.pretraining_batches import pretraining_dataset

__all__ = ["pretraining_dataset"]


def __getattr__(name: str) -> object:
    if name != "pretraining_dataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kbert.data.pretraining_batches import pretraining_dataset  # imports TensorFlow

    return pretraining_dataset
