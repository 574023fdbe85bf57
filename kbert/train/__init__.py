"""Training: losses, optimizers, checkpoints and the loop that joins data and model."""

from kbert.train.distillation import distill
from kbert.train.finetuning import finetune
from kbert.train.optimizer import LAMB, AdamW
from kbert.train.pretraining import pretrain
from kbert.train.schedule import WarmupPolynomialDecay

__all__ = ["LAMB", "AdamW", "WarmupPolynomialDecay", "distill", "finetune", "pretrain"]
