"""Training: losses, optimizer, checkpoints and the loop that joins data and model."""

from kbert.train.loop import train
from kbert.train.optimizer import AdamW
from kbert.train.schedule import WarmupLinearDecay

__all__ = ["AdamW", "WarmupLinearDecay", "train"]
