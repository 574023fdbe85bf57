"""Optimizers for BERT: AdamW, LAMB, Muon and plain SGD.

Each class defines its update rule once, in `step`, a function of tensors. Keras' `fit` calls `step`
through `update_step`, and kbert's training step through `apply_on_replica`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import keras
from keras import ops

from kbert.errors import UserError
from kbert.model.fused import with_xla

if TYPE_CHECKING:
    import tensorflow as tf

    from kbert.settings import TrainingConfig

LearningRate = (
    float
    | keras.optimizers.schedules.LearningRateSchedule
    | Callable[[], float | keras.KerasTensor | keras.Variable]
)
_BLOCK_KERNEL = re.compile(r"\bencoder/layer_\d+/.*kernel$")
NO_DECAY = ("bias", "gamma", "beta")  # ends of the names of biases and LayerNorm weights


def layer_scales(paths: Sequence[str], layer_decay: float) -> list[float]:
    """Returns a factor of the learning rate for each variable, smaller for lower layers.

    The factor is 1 for the task head and the pooler; layer_decay to the power of 1, 2, ..., N for
    the blocks from the last to the first; and layer_decay to the power of N + 1 for the embeddings.
    Source: layer-wise learning rates of Howard and Ruder 2018 (arXiv:1801.06146), section 3.2; the
    powers are from BEiT (Bao et al. 2021).

    Args:
        paths: paths of Keras variables.
        layer_decay: in (0, 1]; 1 gives every layer the same rate.
    """
    blocks = [re.search(r"\bencoder/layer_(\d+)/", path) for path in paths]
    N = 1 + max((int(block[1]) for block in blocks if block), default=-1)

    def power(path, block):
        if block:
            return N - int(block[1])
        return N + 1 if re.search(r"\bembeddings/", path) else 0

    pairs = zip(paths, blocks, strict=True)
    return [layer_decay ** power(path, block) for path, block in pairs]


def _read(variable):
    return variable.read_value()


class _Optimizer(keras.optimizers.Optimizer):
    """Base class of the optimizers. A subclass defines `slot_names` and the update rule `step`.

    `step(gradient, factor, value, slots, learning_rate, count, *, decays, **settings, **fixed)`
    returns the new value of a variable and the list of its new slots. It takes:
        gradient, factor: the gradient, and a float32 scalar that multiplies it.
        value, slots: value of the variable, and list of its slots, one per name in `slot_names`, of
            the same shape.
        learning_rate, count: float32 scalars; `count` is the number of the update, from 1.
        decays: bool, whether weight decay applies to the variable.
        settings, fixed: the attributes named in `settings`, and the hyperparameters in `fixed`.
    XLA compiles `step` on TensorFlow, so that it reads and writes each tensor only once.
    """

    slot_names: tuple[str, ...]
    settings: tuple[str, ...]
    fixed: Mapping[str, bool]
    slot_names, settings, fixed = (), ("weight_decay",), {}

    def __init__(
        self,
        learning_rate: LearningRate,
        weight_decay: float | None = 0.0,
        layer_decay: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay or 0.0, **kwargs)
        self.layer_decay = layer_decay
        self.excluded = {"paths": (), "names": ()}
        self._excluded_paths = ()  # set when a config is loaded

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Excludes variables from weight decay, in addition to biases and LayerNorm weights.

        Unlike in Keras, `get_config` and therefore `.keras` files contain the exclusions.

        Args:
            var_list: variables to exclude.
            var_names: regular expressions, such as "embeddings". A variable is excluded if one of
                them matches a part of its `name`; its `path` is not searched.

        Raises:
            UserError: the optimizer is already built, by `fit` or the first update.
        """
        if self.built:
            raise UserError(
                "exclude_from_weight_decay must be called before the optimizer is built, that is, "
                "before model.fit and before its first update."
            )
        super().exclude_from_weight_decay(var_list, var_names)
        paths = [variable.path for variable in var_list or ()]
        self.excluded = {"paths": tuple(paths), "names": tuple(var_names or ())}

    def _is_decayed(self, variable):
        excluded = variable.name.endswith(NO_DECAY) or variable.path in self._excluded_paths
        return not excluded and self._use_weight_decay(variable)

    def _apply_weight_decay(self, variables):
        """Does nothing: `step` decays the weights; Keras would decay them here, in another pass."""

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.decays = [self._is_decayed(variable) for variable in variables]
        self.scales = layer_scales([variable.path for variable in variables], self.layer_decay)
        self.slots = [self.add_optimizer_variables(variables, name) for name in self.slot_names]

    def update_step(
        self,
        gradient: keras.KerasTensor,
        variable: keras.Variable,
        learning_rate: keras.KerasTensor,
    ) -> None:
        index = self._get_variable_index(variable)
        variables = [variable, *(slot[index] for slot in self.slots)]
        rate, count = (ops.cast(x, variable.dtype) for x in (learning_rate, self.iterations + 1))
        gradient = ops.cast(gradient, variable.dtype)
        self._update(index, gradient, variables, ops.convert_to_tensor, rate, count)

    def apply_on_replica(
        self,
        gradients: "Sequence[tf.Tensor]",
        factor: "tf.Tensor",
        learning_rate: "tf.Tensor",
        local_copy: "Callable[[keras.Variable], tf.Variable]",
    ) -> None:
        """Updates the variables of one replica; every replica applies the same update.

        Args:
            gradients: gradient of each trainable variable, summed over the replicas.
            factor: float32 scalar that multiplies the gradients, to clip their norm.
            learning_rate: float32 scalar.
            local_copy: function from a Keras variable to this replica's tf.Variable.
        """
        iterations = local_copy(self.iterations)
        count = ops.cast(iterations + 1, "float32")
        for index, gradient in enumerate(gradients):
            slots = (slot[index] for slot in self.slots)
            variables = [local_copy(v) for v in (self._trainable_variables[index], *slots)]
            self._update(index, gradient, variables, _read, learning_rate, count, factor)
        iterations.assign_add(1)

    def _fixed_of(self, index):
        """Returns the fixed hyperparameters for the variable at `index`."""
        return self.fixed

    def _update(self, index, gradient, variables, read, learning_rate, count, factor=1.0):
        """Applies `step` to variable number `index` and its slots; `read` returns their values."""
        value, *slots = map(read, variables)
        value, slots = self.step(
            gradient,
            ops.cast(factor, gradient.dtype),
            value,
            slots,
            learning_rate * self.scales[index],
            count,
            decays=self.decays[index],
            **{name: getattr(self, name) for name in self.settings},
            **self._fixed_of(index),
        )
        for variable, new in zip(variables, [value, *slots], strict=True):
            self.assign(variable, new)

    def named_variables(self, names: Sequence[str]) -> dict[str, keras.Variable]:
        """Returns the variables that a checkpoint stores: dict of name -> Keras variable.

        Args:
            names: the name of each variable that the optimizer was built with.
        """
        named = {"iterations": self.iterations}
        for slot_name, slots in zip(self.slot_names, self.slots, strict=True):
            named |= {f"{slot_name}/{n}": slot for n, slot in zip(names, slots, strict=True)}
        return named

    def get_config(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in (*self.settings, "layer_decay")}
        excluded = {kind: list(values) for kind, values in self.excluded.items()}
        return {**super().get_config(), **settings, "excluded": excluded}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        excluded = config.pop("excluded", None)
        optimizer = super().from_config(config, custom_objects)
        if excluded:
            optimizer.exclude_from_weight_decay(var_names=excluded["names"])
            optimizer.excluded, optimizer._excluded_paths = excluded, tuple(excluded["paths"])
        return optimizer


class _Adam(_Optimizer):
    """Adam (Kingma and Ba 2015) with decoupled weight decay; subclasses are variants of it."""

    slot_names = ("momentum", "velocity")
    settings = ("weight_decay", "beta_1", "beta_2", "epsilon")

    def __init__(
        self,
        learning_rate: LearningRate = 1e-4,
        weight_decay: float | None = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    @staticmethod
    @with_xla
    def step(
        gradient,
        factor,
        value,
        slots,
        learning_rate,
        count,
        *,
        decays,
        weight_decay,
        beta_1,
        beta_2,
        epsilon,
        bias_correction,
        trust_ratio,
    ):
        gradient, (momentum, velocity) = gradient * factor, slots
        momentum = momentum + (gradient - momentum) * (1 - beta_1)
        velocity = velocity + (ops.square(gradient) - velocity) * (1 - beta_2)
        mean, square = momentum, velocity
        if bias_correction:
            mean, square = momentum / (1 - beta_1**count), velocity / (1 - beta_2**count)
        update = mean / (ops.sqrt(square) + epsilon)
        if decays:
            update = update + weight_decay * value
        if decays and trust_ratio:
            norm, update_norm = ops.norm(value), ops.norm(update)
            usable = ops.logical_and(norm > 0, update_norm > 0)
            update = ops.where(usable, norm / ops.where(usable, update_norm, 1.0), 1.0) * update
        return value - learning_rate * update, [momentum, velocity]


@keras.saving.register_keras_serializable("kbert")
class AdamW(_Adam):
    """Adam with decoupled weight decay; as in BERT, without bias correction by default.

    Source: `AdamWeightDecayOptimizer` in google-research/bert's `optimization.py`. Biases and
    LayerNorm weights are not decayed.

    Args:
        learning_rate: float, schedule, or function without arguments.
        weight_decay: scaled by the learning rate; see also `exclude_from_weight_decay`.
        beta_1, beta_2, epsilon: constants of Adam. layer_decay: see `layer_scales`.
        bias_correction: whether to correct the bias of the moments, as in Adam (Kingma and Ba 2015,
            section 3). It makes fine-tuning on few examples more stable (Mosbach et al. 2021,
            arXiv:2006.04884).
    """

    settings = (*_Adam.settings, "bias_correction")
    fixed = {"trust_ratio": False}

    def __init__(
        self,
        learning_rate: LearningRate = 1e-4,
        weight_decay: float | None = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        bias_correction: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, beta_1, beta_2, epsilon, **kwargs)
        self.bias_correction = bias_correction


@keras.saving.register_keras_serializable("kbert")
class LAMB(_Adam):
    """Adam for large batches (You et al. 2020, arXiv:1904.00962, algorithm 2).

    The update of a variable is Adam's bias-corrected update plus the weight decay, scaled by the
    trust ratio: the norm of the variable divided by the norm of that update. Biases and LayerNorm
    weights are neither decayed nor scaled, as in the authors' code.
    `keras.optimizers.Lamb` differs: its trust ratio omits the weight decay, and it exempts no
    variables.

    Args:
        learning_rate: float, schedule, or function without arguments.
        weight_decay: scaled by the learning rate; see also `exclude_from_weight_decay`.
        beta_1, beta_2, epsilon: constants of Adam. layer_decay: see `layer_scales`.
    """

    fixed = {"bias_correction": True, "trust_ratio": True}


@keras.saving.register_keras_serializable("kbert")
class Muon(_Adam):
    """Muon for the kernels of the encoder's blocks, AdamW with bias correction for other variables.

    The update of a kernel is the orthogonal matrix that is nearest to its Nesterov momentum,
    approximated by five Newton-Schulz iterations (Jordan et al. 2024). It is scaled so that the
    root mean square of its elements is `rms_rate`, as in Liu et al. 2025 (arXiv:2502.16982),
    section 2.2, where it is 0.2. Small models learn more per example than with AdamW.

    Args:
        learning_rate: float, schedule, or function without arguments.
        weight_decay: scaled by the learning rate; see also `exclude_from_weight_decay`.
        beta_1, beta_2, epsilon: constants of AdamW. layer_decay: see `layer_scales`.
        momentum: momentum of the kernels' updates.
        rms_rate: root mean square of a kernel's update, before the learning rate.
    """

    settings = (*_Adam.settings, "momentum", "rms_rate")

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        weight_decay: float | None = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        momentum: float = 0.95,
        rms_rate: float = 0.6,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, beta_1, beta_2, epsilon, **kwargs)
        self.momentum, self.rms_rate = momentum, rms_rate

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self._is_kernel = [bool(_BLOCK_KERNEL.search(variable.path)) for variable in variables]

    def _fixed_of(self, index):
        return {"orthogonal": self._is_kernel[index]}

    @staticmethod
    @with_xla
    def step(
        gradient,
        factor,
        value,
        slots,
        learning_rate,
        count,
        *,
        decays,
        orthogonal,
        weight_decay,
        momentum,
        rms_rate,
        **adam,
    ):
        if not orthogonal:
            arguments = (gradient, factor, value, slots, learning_rate, count)
            adam |= {"bias_correction": True, "trust_ratio": False}
            return AdamW.step(*arguments, decays=decays, weight_decay=weight_decay, **adam)
        gradient, (mean, unused) = gradient * factor, slots
        mean = momentum * mean + gradient
        scale = rms_rate * math.sqrt(max(value.shape))
        update = scale * _orthogonalized(gradient + momentum * mean)
        if decays:
            update = update + weight_decay * value
        return value - learning_rate * update, [mean, unused]


def _orthogonalized(x):
    """Approximates the nearest matrix with orthonormal rows or columns; source: Jordan's code."""
    rows, columns = x.shape
    if rows > columns:
        return ops.transpose(_orthogonalized(ops.transpose(x)))
    x = x / (ops.norm(x) + 1e-7)
    for _ in range(5):
        square = ops.matmul(x, ops.transpose(x))
        x = 3.4445 * x + ops.matmul(-4.7750 * square + 2.0315 * ops.matmul(square, square), x)
    return x


@keras.saving.register_keras_serializable("kbert")
class SGD(_Optimizer):
    """Gradient descent without momentum, to compare runs: it has no state and no epsilon."""

    def __init__(
        self,
        learning_rate: LearningRate = 0.1,
        weight_decay: float | None = 0.0,
        name: str = "sgd",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, name=name, **kwargs)

    @staticmethod
    @with_xla
    def step(gradient, factor, value, slots, learning_rate, count, *, decays, weight_decay):
        update = gradient * factor
        if decays:
            update = update + weight_decay * value
        return value - learning_rate * update, []


def make_optimizer(
    config: "TrainingConfig", schedule: keras.optimizers.schedules.LearningRateSchedule
) -> AdamW | LAMB | Muon | SGD:
    """Returns the optimizer of a run, which is not built yet. SGD gets no weight decay."""
    if config.optimizer == "sgd":
        return SGD(schedule, layer_decay=config.layer_decay)
    moments = {"epsilon": config.adam_epsilon, "layer_decay": config.layer_decay}
    if config.optimizer in ("lamb", "muon"):
        kind = LAMB if config.optimizer == "lamb" else Muon
        return kind(schedule, config.weight_decay, **moments)
    options = {"bias_correction": config.bias_correction, **moments}
    return AdamW(schedule, config.weight_decay, **options)
