"""Magnitude pruning during training: more and more of the smallest weights are fixed at 0.

Source: Zhu and Gupta 2017 (arXiv:1710.01878), section 3: the sparsity of each matrix grows along a
cubic from 0 to its final value, fast at first. Masks are not stored: a weight is pruned if it is 0,
so checkpoints, replicas and resumed runs need only the weights.
"""

import re

import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.model.fused import with_xla

LEVELS = 100  # number of increments from sparsity 0 to the final sparsity
_PRUNED = re.compile(
    r"bert/encoder/layer_\d+/(attention/(query|key|value|output)|intermediate|output)/kernel"
)
_HIGHEST = 0x7F800000  # the bits of infinity in float32


class MagnitudePruning:
    """Sets a growing fraction of each matrix of the encoder blocks to 0.

    It prunes the trained matrices of attention and feed-forward layers; embeddings, the pooler,
    task heads, biases and LayerNorm are not pruned.

    Args:
        model: of `kbert.model`. config: TrainingConfig. train_steps: int, steps of the run.

    Attributes:
        begin, end: int, steps at which pruning starts and at which it reaches the final sparsity.

    Raises:
        UserError: none of these matrices is trained.
    """

    def __init__(self, model, config, train_steps):
        self.begin = int(config.sparsity_begin * train_steps)
        self.end = max(self.begin + 1, round(config.sparsity_end * train_steps))
        self._share = config.sparsity
        names = {id(weight): name for name, weight in model.named_weights().items()}
        self._matrices = {  # index in the trainable weights -> Keras variable
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
        self._zeros = {  # number of zeros of each matrix at each level
            i: [round(share * int(np.prod(weight.shape))) for share in shares]
            for i, weight in self._matrices.items()
        }

    def learning(self, gradients, local):
        """Sets the gradients of pruned weights to 0.

        Args:
            gradients: list of tensors, of all trained weights.
            local: function from a Keras variable to this replica's tf.Variable.
        """
        gradients = list(gradients)
        for i, matrix in self._matrices.items():
            gradients[i] = _learning(gradients[i], local(matrix).read_value())
        return gradients

    def kept(self, step):
        """Returns a function that prunes the weights after an update.

        Args:
            step: int64 scalar, number of previous updates.

        Returns:
            function of the index of a trained weight, its value before the update and its value
            after the optimizer's update, which returns the pruned value.
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
        """float, the fraction of zeros over all pruned matrices. local: as for `learning`."""
        zeros = sum(int(tf.reduce_sum(tf.cast(local(m) == 0, tf.int64))) for m in self._all())
        return zeros / self._size()

    def describe(self):
        """Returns a line that describes the pruning."""
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
    """Keeps the zeros of a matrix; returns its value and the number of zeros.

    If an update makes a weight exactly 0, the weight keeps its previous value; otherwise it would
    count as pruned.
    """
    pruned = before == 0
    value = tf.where(pruned | (after == 0), before, after)
    return value, tf.reduce_sum(tf.cast(pruned, tf.int32))


@with_xla
def _pruned(value, count):
    """Sets the `count` weights of smallest magnitude to 0; among equals, the first ones."""
    bits = tf.bitcast(tf.abs(value), tf.int32)  # floats >= 0 sort in the order of their bits
    limit = _least(bits, tf.constant(True), count, _HIGHEST)
    smaller, equal = bits < limit, bits == limit
    places = tf.reshape(tf.range(tf.size(value)), tf.shape(value))
    left = count - tf.reduce_sum(tf.cast(smaller, tf.int32))
    last = _least(places, equal, left, tf.size(value) - 1)
    return tf.where(smaller | (equal & (places <= last)), 0.0, value)


def _least(numbers, among, count, highest):
    """Finds the smallest limit such that at least `count` numbers are <= it, by bisection.

    Args:
        numbers: int32, from 0 to `highest`. among: bool, mask of the numbers. count: int32.
    """

    def halve(low, high):
        middle = low + (high - low) // 2
        enough = tf.reduce_sum(tf.cast(among & (numbers <= middle), tf.int32)) >= count
        return tf.where(enough, low, middle + 1), tf.where(enough, middle, high)

    start = tf.constant(0), tf.convert_to_tensor(highest)
    return tf.while_loop(lambda low, high: low < high, halve, start)[1]
