"""Multi-head self-attention (Vaswani et al. 2017, section 3.2), as BERT uses it."""

import contextlib
import contextvars
import math

import keras
from keras import ops

from kbert.config import BertConfig

_undrawn = contextvars.ContextVar("undrawn", default=False)


@contextlib.contextmanager
def undrawn_weights():
    """Makes layers whose matrices are 0 instead of drawn: for weights that are read next."""
    token = _undrawn.set(True)
    try:
        yield
    finally:
        _undrawn.reset(token)


def matrix_initializer(config):
    """Fresh matrices of BERT: truncated normal. A new object each time, so with its own seed."""
    if _undrawn.get():
        return keras.initializers.Zeros()
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)


class ConfiguredLayer(keras.layers.Layer):
    """Base of the layers whose only argument is a BertConfig (or its dict, when deserialized)."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, BertConfig) else BertConfig(**config)

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}

    def dense(self, units, name, **kwargs):
        """A Dense with BERT's initializer and this layer's dtype policy."""
        return keras.layers.Dense(
            units,
            kernel_initializer=self.initializer(),
            dtype=self.dtype_policy,
            name=name,
            **kwargs,
        )

    def norm(self, name):
        """A LayerNorm with BERT's epsilon."""
        return keras.layers.LayerNormalization(
            epsilon=self.config.layer_norm_eps, dtype=self.dtype_policy, name=name
        )

    def dropout(self, rate, name):
        """A Dropout with this layer's dtype policy."""
        return keras.layers.Dropout(rate, dtype=self.dtype_policy, name=name)

    def initializer(self):
        """See `matrix_initializer`."""
        return matrix_initializer(self.config)

    def activation(self, x):
        """The config's `hidden_act`."""
        return ops.gelu(x, approximate=self.config.hidden_act == "gelu_new")


def attention_bias(attention_mask, dtype):
    """What is added to the attention scores: 0 at tokens, a large negative number at padding.

    Args:
        attention_mask: (B, L), 1 = token, 0 = padding.
        dtype: of the result. In float16, -1e9 would be -inf, hence -3e4 there.

    Returns:
        (B, 1, 1, L).
    """
    lowest = -3e4 if dtype == "float16" else -1e9
    return (1 - ops.cast(attention_mask, dtype))[:, None, None, :] * lowest


@keras.saving.register_keras_serializable("kbert")
class SelfAttention(ConfiguredLayer):
    """Self-attention of H heads of width K = D / H, with its output projection.

    Call arguments:
        x: (B, L, D). bias: (B, 1, 1, L) from `attention_bias`, or None.

    Returns:
        (B, L, D), and the attention weights (B, H, L, L), in training after dropout.
    """

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        D = self.config.hidden_size
        self.query, self.key, self.value, self.output_dense = (
            self.dense(D, name) for name in ("query", "key", "value", "output")
        )
        self.weights_dropout = self.dropout(self.config.attention_probs_dropout_prob, "dropout")

    def build(self, x_shape):
        for layer in (self.query, self.key, self.value, self.output_dense):
            layer.build(x_shape)

    def call(self, x, bias=None, training=None):
        H = self.config.num_attention_heads
        K = self.config.hidden_size // H
        L = ops.shape(x)[1]

        def heads(projected):
            return ops.transpose(ops.reshape(projected, (-1, L, H, K)), (0, 2, 1, 3))

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) / math.sqrt(K)  # (B, H, L, L)
        if bias is not None:
            scores = scores + bias
        weights = ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), value.dtype)
        weights = self.weights_dropout(weights, training=training)
        context = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # (B, L, H, K)
        return self.output_dense(ops.reshape(context, (-1, L, H * K))), weights  # (B, L, D)
