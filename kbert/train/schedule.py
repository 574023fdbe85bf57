"""The learning-rate schedule of BERT."""

from typing import TYPE_CHECKING

import keras
from keras import ops

if TYPE_CHECKING:
    from kbert.settings import PretrainConfig


@keras.saving.register_keras_serializable("kbert")
class WarmupPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warmup from 0, then polynomial decay to 0: (1 - step / decay_steps)^power.

    As in google-research/bert's `optimization.py`, the decay counts from step 0, so the rate drops
    by a factor of (1 - warmup_steps / decay_steps)^power at the end of the warmup.

    Args:
        learning_rate: target of the warmup. decay_steps, warmup_steps: numbers of steps.
        power: 1 for the linear decay of BERT.
    """

    def __init__(
        self, learning_rate: float, decay_steps: int, warmup_steps: int, power: float = 1.0
    ) -> None:
        self.learning_rate = learning_rate
        self.decay_steps = decay_steps
        self.warmup_steps = warmup_steps
        self.power = power

    def __call__(self, step: int | keras.KerasTensor) -> keras.KerasTensor:
        step = ops.cast(step, "float32")
        left = 1.0 - ops.minimum(step / self.decay_steps, 1.0)
        decayed = self.learning_rate * left**self.power
        warming = self.learning_rate * step / max(self.warmup_steps, 1)
        return ops.where(step < self.warmup_steps, warming, decayed)

    def get_config(self) -> dict[str, float]:
        return {
            "learning_rate": self.learning_rate,
            "decay_steps": self.decay_steps,
            "warmup_steps": self.warmup_steps,
            "power": self.power,
        }


def make_schedule(config: "PretrainConfig") -> WarmupPolynomialDecay:
    """Returns the learning-rate schedule of a pretraining run."""
    return WarmupPolynomialDecay(
        config.learning_rate,
        config.decay_steps or config.train_steps,
        config.warmup_steps,
        config.decay_power,
    )
