"""Magnitude pruning in training: more and more of the smallest weights become 0, and stay 0.

Source: Zhu and Gupta 2017 (arXiv:1710.01878), section 3: the sparsity of each matrix grows from 0
to the final one along a cubic, fast at first. There are no masks beside the weights: a weight is
pruned if it is 0. So checkpoints, replicas and runs that go on have the masks with the weights.
"""

import re

import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.model.fused import with_xla

LEVELS = 100  # by so many steps the sparsity rises to the final one
_PRUNED = re.compile(
    r"bert/encoder/layer_\d+/(attention/(query|key|value|output)|intermediate|output)/kernel"
)
_HIGHEST = 0x7F800000  # the bits of infinity, float32


class MagnitudePruning:
    """Which weights are 0 after each step: a share of each matrix of the encoder blocks.

    The matrices are those of attention and of the feed-forward parts, as far as they are trained;
    embeddings, the pooler, heads, biases and LayerNorm are left alone.

    Args:
        model: of `kbert.model`. config: TrainingConfig. train_steps: int, steps of the run.

    Attributes:
        begin, end: int, steps after which the first and the last weights become 0.

    Raises:
        UserError: no matrix is trained.
    """

    def __init__(self, model, config, train_steps):
        self.begin = int(config.sparsity_begin * train_steps)
        self.end = max(self.begin + 1, round(config.sparsity_end * train_steps))
        self._share = config.sparsity
        names = {id(weight): name for name, weight in model.named_weights().items()}
        self._matrices = {  # number among the trained weights -> Keras variable
            i: weight
            for i, weight in enumerate(model.trainable_variables)
            if _PRUNED.fullmatch(names.get(id(weight), ""))
        }
        if not self._matrices:
            raise UserError(
                f"sparsity is {config.sparsity}, and no matrix of the encoder blocks is trained. "
                f"Freeze fewer layers, or leave --sparsity out."
            )
        count = min(LEVELS, self.end - self.begin)
        shares = [config.sparsity * (1 - (1 - i / count) ** 3) for i in range(count + 1)]
        self._zeros = {  # at each level, of each matrix
            i: [round(share * int(np.prod(weight.shape))) for share in shares]
            for i, weight in self._matrices.items()
        }

    def learning(self, gradients, local):
        """The gradients, 0 for weights that are pruned.

        Args:
            gradients: list of tensors, of all trained weights.
            local: function from a Keras variable to the tf.Variable that this replica holds of it.
        """
        gradients = list(gradients)
        for i, matrix in self._matrices.items():
            gradients[i] = _learning(gradients[i], local(matrix).read_value())
        return gradients

    def kept(self, step):
        """What is left of the weights after an update.

        Args:
            step: int64 scalar, updates before this one.

        Returns:
            function of the number of a trained weight, its value before and the one that the
            optimizer gives it, to its value.
        """
        count = min(LEVELS, self.end - self.begin)
        level = (step + 1 - self.begin) * count // (self.end - self.begin)
        level = tf.clip_by_value(level, 0, count)

        def value(i, before, after):
            if i not in self._matrices:
                return after
            after, zeros = _masked(before, after)
            target = tf.gather(tf.constant(self._zeros[i], tf.int32), level)
            return tf.cond(zeros < target, lambda: _pruned(after, target), lambda: after)

        return value

    def sparsity(self, local):
        """float, the share of zeros of all matrices together. local: as for `learning`."""
        zeros = sum(int(tf.reduce_sum(tf.cast(local(m) == 0, tf.int64))) for m in self._all())
        return zeros / self._size()

    def describe(self):
        """A line for a person."""
        return (
            f"sparsity: {self._share:.0%} of each of {len(self._matrices)} matrices "
            f"({self._size():,} weights) becomes 0 from step {self.begin:,} to {self.end:,}"
        )

    def _all(self):
        return self._matrices.values()

    def _size(self):
        return sum(int(np.prod(matrix.shape)) for matrix in self._all())


@with_xla
def _learning(gradient, value):
    return tf.where(value == 0, 0.0, gradient)


@with_xla
def _masked(before, after):
    """The value of a matrix whose zeros stay, and how many these are.

    A weight that an update would make 0 by chance stays what it was, or it would count as pruned.
    """
    pruned = before == 0
    value = tf.where(pruned | (after == 0), before, after)
    return value, tf.reduce_sum(tf.cast(pruned, tf.int32))


@with_xla
def _pruned(value, count):
    """The matrix with its `count` smallest weights, by magnitude, made 0; of equals the first."""
    bits = tf.bitcast(tf.abs(value), tf.int32)  # of floats >= 0 the order is that of their bits
    limit = _least(bits, tf.constant(True), count, _HIGHEST)
    smaller, equal = bits < limit, bits == limit
    places = tf.reshape(tf.range(tf.size(value)), tf.shape(value))
    left = count - tf.reduce_sum(tf.cast(smaller, tf.int32))
    last = _least(places, equal, left, tf.size(value) - 1)
    return tf.where(smaller | (equal & (places <= last)), 0.0, value)


def _least(numbers, among, count, highest):
    """The least number that `count` of some numbers do not exceed, by halving.

    Args:
        numbers: int32, from 0 to `highest`. among: bool, which of them count. count: int32.
    """

    def halve(low, high):
        middle = low + (high - low) // 2
        enough = tf.reduce_sum(tf.cast(among & (numbers <= middle), tf.int32)) >= count
        return tf.where(enough, low, middle + 1), tf.where(enough, middle, high)

    start = tf.constant(0), tf.convert_to_tensor(highest)
    return tf.while_loop(lambda low, high: low < high, halve, start)[1]
