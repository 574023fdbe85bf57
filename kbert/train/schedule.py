"""Learning-rate schedule of BERT."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kbert")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then linear decay to 0 at the last step.

    As in google-research/bert's `optimization.py`: the decay counts from step 0, so the rate steps
    down by a factor of 1 - warmup_steps / train_steps where the warm-up ends.

    Args:
        learning_rate: the peak that the warm-up heads for. train_steps, warmup_steps: int.
    """

    def __init__(self, learning_rate, train_steps, warmup_steps):
        self.learning_rate = learning_rate
        self.train_steps = train_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        share = ops.minimum(step / self.train_steps, 1.0)
        decayed = self.learning_rate * (1.0 - share)
        warming = self.learning_rate * step / max(self.warmup_steps, 1)
        return ops.where(step < self.warmup_steps, warming, decayed)

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "train_steps": self.train_steps,
            "warmup_steps": self.warmup_steps,
        }
