"""Training: pretraining, fine-tuning and distillation; optimizers, schedules and callbacks."""

from kbert.train.callbacks import Callback
from kbert.train.distillation import distill
from kbert.train.finetuning import finetune
from kbert.train.optimizer import LAMB, AdamW, Muon
from kbert.train.pretraining import pretrain
from kbert.train.schedule import WarmupPolynomialDecay, WarmupStableDecay

__all__ = [
    "LAMB",
    "AdamW",
    "Callback",
    "Muon",
    "WarmupPolynomialDecay",
    "WarmupStableDecay",
    "distill",
    "finetune",
    "pretrain",
]
