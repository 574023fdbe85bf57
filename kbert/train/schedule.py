"""Learning-rate schedules: a linear warmup, then a decay to 0."""

import abc
from typing import TYPE_CHECKING

import keras
from keras import ops

if TYPE_CHECKING:
    from kbert.settings import PretrainConfig


class _WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule, abc.ABC):
    """Base class: linear warmup from 0 to `learning_rate`, then `learning_rate` times `factor`.

    A subclass defines `factor` and names its constructor arguments in `settings`.
    """

    settings: tuple[str, ...] = ("learning_rate", "decay_steps", "warmup_steps")

    def __init__(self, learning_rate: float, decay_steps: int, warmup_steps: int) -> None:
        self.learning_rate = learning_rate
        self.decay_steps = decay_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step: int | keras.KerasTensor) -> keras.KerasTensor:
        step = ops.cast(step, "float32")
        warming = self.learning_rate * step / max(self.warmup_steps, 1)
        rate = self.learning_rate * self.factor(step)
        return ops.where(step < self.warmup_steps, warming, rate)

    @abc.abstractmethod
    def factor(self, step: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the factor of the learning rate at a step after the warmup, a float32 scalar."""

    def get_config(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.settings}


@keras.saving.register_keras_serializable("kbert")
class WarmupPolynomialDecay(_WarmupSchedule):
    """Linear warmup from 0, then polynomial decay to 0: (1 - step / decay_steps)^power.

    As in google-research/bert's `optimization.py`, the decay counts from step 0, so the rate drops
    at the end of the warmup, to (1 - warmup_steps / decay_steps)^power times `learning_rate`.

    Args:
        learning_rate: target of the warmup.
        decay_steps: step at which the rate is 0.
        warmup_steps: number of steps of the warmup.
        power: 1 for the linear decay of BERT.
    """

    settings = (*_WarmupSchedule.settings, "power")

    def __init__(
        self, learning_rate: float, decay_steps: int, warmup_steps: int, power: float = 1.0
    ) -> None:
        super().__init__(learning_rate, decay_steps, warmup_steps)
        self.power = power

    def factor(self, step: keras.KerasTensor) -> keras.KerasTensor:
        return (1.0 - ops.minimum(step / self.decay_steps, 1.0)) ** self.power


@keras.saving.register_keras_serializable("kbert")
class WarmupStableDecay(_WarmupSchedule):
    """Linear warmup from 0, a constant rate, then a cooldown to 0 as 1 - sqrt(progress).

    Until its cooldown starts, a run can resume with another number of steps. Source: Hägele et al.
    2024 (arXiv:2405.18392), section 3. HF's `get_wsd_schedule` with `decay_type="1-sqrt"` is the
    same.

    Args:
        learning_rate: target of the warmup.
        decay_steps: step at which the cooldown ends and the rate is 0.
        warmup_steps, cooldown_steps: numbers of steps of the warmup and of the cooldown.
    """

    settings = (*_WarmupSchedule.settings, "cooldown_steps")

    def __init__(
        self, learning_rate: float, decay_steps: int, warmup_steps: int, cooldown_steps: int
    ) -> None:
        super().__init__(learning_rate, decay_steps, warmup_steps)
        self.cooldown_steps = cooldown_steps

    def factor(self, step: keras.KerasTensor) -> keras.KerasTensor:
        first = self.decay_steps - self.cooldown_steps
        progress = ops.clip((step - first) / max(self.cooldown_steps, 1), 0.0, 1.0)
        return 1.0 - ops.sqrt(progress)


Schedule = keras.optimizers.schedules.LearningRateSchedule


def make_schedule(config: "PretrainConfig") -> Schedule:
    """Returns the learning-rate schedule of a pretraining run."""
    end = config.decay_steps or config.train_steps
    rate, warmup_steps = config.learning_rate, config.warmup_steps
    if config.lr_schedule == "cosine":  # the same as HF's `get_cosine_schedule_with_warmup`
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(end - warmup_steps, 1), warmup_target=rate, warmup_steps=warmup_steps
        )
    if config.lr_schedule == "warmup_stable_decay":
        return WarmupStableDecay(rate, end, warmup_steps, config.cooldown_steps or end // 5)
    return WarmupPolynomialDecay(rate, end, warmup_steps, config.decay_power)
