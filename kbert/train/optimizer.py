"""Optimizers of BERT."""

import keras
from keras import ops

from kbert.train.schedule import WarmupLinearDecay

NO_DECAY = ("bias", "gamma", "beta")  # biases and LayerNorm, by the names of their variables


@keras.saving.register_keras_serializable("kbert")
class AdamW(keras.optimizers.Optimizer):
    """Adam with decoupled weight decay as BERT was trained with: no bias correction, epsilon 1e-6.

    Source: `AdamWeightDecayOptimizer` of google-research/bert's `optimization.py`. Biases and
    LayerNorm are not decayed.

    Args:
        learning_rate: float or schedule. weight_decay: float, scaled by the learning rate.
        beta_1, beta_2, epsilon: float.
    """

    def __init__(
        self,
        learning_rate=1e-4,
        weight_decay=0.01,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        name="adamw",
        **kwargs,
    ):
        super().__init__(learning_rate, name=name, weight_decay=weight_decay, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables):
        if self.built:
            return
        self.exclude_from_weight_decay(var_names=list(NO_DECAY))
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        self.assign_add(momentum, (gradient - momentum) * (1 - self.beta_1))
        self.assign_add(velocity, (ops.square(gradient) - velocity) * (1 - self.beta_2))
        step = momentum / (ops.sqrt(velocity) + self.epsilon)
        self.assign_sub(variable, learning_rate * step)

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


def make_optimizer(config):
    """The optimizer of a `PretrainConfig`, with its schedule."""
    schedule = WarmupLinearDecay(config.learning_rate, config.train_steps, config.warmup_steps)
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(schedule)
    return AdamW(schedule, weight_decay=config.weight_decay)
