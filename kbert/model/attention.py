"""Self-attention (Vaswani et al. 2017, section 3.2), and the layers that all parts of BERT use."""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops

from kbert.config import BertConfig
from kbert.model import fused, inference_ops

_skipping = contextvars.ContextVar("skip_initialization", default=False)


@contextlib.contextmanager
def skip_initialization() -> Iterator[None]:
    """Context manager: new layers initialize their matrices to 0, to save time before loading."""
    token = _skipping.set(True)
    try:
        yield
    finally:
        _skipping.reset(token)


def matrix_initializer(config: BertConfig) -> keras.initializers.Initializer:
    """Returns a new initializer for BERT's matrices.

    It is a truncated normal with the standard deviation `initializer_range` and its own seed; or
    zeros within `skip_initialization`.
    """
    if _skipping.get():
        return keras.initializers.Zeros()
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)


@keras.saving.register_keras_serializable("kbert")
class Dropout(keras.layers.Dropout):
    """Dropout with the same masks on all backends; see `kbert.model.fused.dropout`."""

    def next_seed(self) -> keras.KerasTensor:
        """Draws the seed of one call, (2,) int32; returns zeros without a draw if the rate is 0."""
        if self.rate == 0:
            return ops.zeros((2,), "int32")
        return ops.cast(self.seed_generator.next(), "int32")

    def call(self, x: keras.KerasTensor, training: bool | None = False) -> keras.KerasTensor:
        if training and self.rate > 0:
            return fused.dropout(x, self.next_seed(), self.rate)
        return x


@keras.saving.register_keras_serializable("kbert")
class Dense(keras.layers.Dense):
    """A Dense layer that saves LoRA's matrices A and B separately from the kernel.

    Keras would save the merged kernel and load A = B = 0, for which both gradients are 0.
    """

    def save_own_variables(self, store: dict[str, Any]) -> None:
        if self.lora_enabled and not self.quantization_mode:
            return super(keras.layers.Dense, self).save_own_variables(store)
        return super().save_own_variables(store)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        if not self.lora_enabled:
            return super().load_own_variables(store)
        if len(store.keys()) == len(self.weights):
            return super(keras.layers.Dense, self).load_own_variables(store)
        a = ops.convert_to_numpy(self.lora_kernel_a)
        super().load_own_variables(store)  # Keras sets A = B = 0
        self.lora_kernel_a.assign(a)

    def quantize(
        self, mode: str | None = None, type_check: bool = True, config: object | None = None
    ) -> None:
        """See `keras.layers.Dense.quantize`, whose `type_check` would reject this subclass."""
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable("kbert")  # for type checkers; see PretrainedModel
class ConfiguredLayer(keras.layers.Layer):
    """Base class of the layers that take a BertConfig, or its dict when Keras loads a layer."""

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(**kwargs)
        self.config: BertConfig = config if isinstance(config, BertConfig) else BertConfig(**config)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}

    def dense(self, units: int, name: str, **kwargs: object) -> Dense:
        """Creates a Dense with `matrix_initializer` and this layer's dtype policy."""
        kwargs |= {"name": name, "dtype": self.dtype_policy}
        return Dense(units, kernel_initializer=matrix_initializer(self.config), **kwargs)

    def norm(self, name: str) -> keras.layers.LayerNormalization:
        """Creates a LayerNormalization with `layer_norm_eps` and this layer's dtype policy."""
        return keras.layers.LayerNormalization(
            epsilon=self.config.layer_norm_eps, dtype=self.dtype_policy, name=name
        )

    def dropout(self, rate: float, name: str) -> Dropout:
        """Creates a Dropout with this layer's dtype policy."""
        return Dropout(rate, dtype=self.dtype_policy, name=name)


def attention_bias(
    attention_mask: keras.KerasTensor | None, sequence_ids: keras.KerasTensor | None, dtype: str
) -> keras.KerasTensor | None:
    """Returns the bias of the attention scores: 0, or a large negative number for masked tokens.

    Padding is masked; with `sequence_ids`, so are the tokens of the row's other texts.

    Args:
        attention_mask: (B, L), 1 = token, 0 = padding; None = all tokens.
        sequence_ids: (B, L), the number of each token's text in the row; None = one text per row.
        dtype: dtype of the result. Masked tokens get -1e9, or -3e4 in float16, where -1e9 would
            be -inf.

    Returns:
        (B, 1, 1, L), or (B, 1, L, L) with `sequence_ids`; None if both arguments are None.
    """
    if attention_mask is None and sequence_ids is None:
        return None
    visible = 1
    if attention_mask is not None:
        visible = ops.expand_dims(ops.cast(attention_mask, dtype), (1, 2))
    if sequence_ids is not None:
        same = ops.equal(sequence_ids[:, None, :, None], sequence_ids[:, None, None, :])
        visible = ops.cast(same, dtype) * visible
    return (1 - visible) * (-3e4 if dtype == "float16" else -1e9)


@keras.saving.register_keras_serializable("kbert")
class SelfAttention(ConfiguredLayer):
    """Self-attention of H heads of width K, without the output projection.

    `EncoderBlock` applies the projection, `output_dense`, fused with the ops that follow it.

    Args:
        config: BertConfig.
        attention_heads: H; None for `num_attention_heads`. K does not depend on it.

    Attributes:
        head_mask: None (the default), or a (B, H) tensor that multiplies the output of each head.
            `kbert.prune` sets it to measure the importance of heads.

    Call arguments:
        x: (B, L, D).
        bias: (B, 1, 1, L) or (B, 1, P, L), from `attention_bias`, or None.
        query_inputs: (B, P, D), the rows of x to compute outputs for; None for all rows (P = L).

    Returns:
        The concatenated outputs of the heads (B, P, H * K), and the attention weights (B, H, P, L),
        which include dropout in training.
    """

    head_mask: keras.KerasTensor | None = None

    def __init__(
        self,
        config: BertConfig | Mapping[str, Any],
        attention_heads: int | None = None,
        **kwargs: object,
    ):
        super().__init__(config, **kwargs)
        self.attention_heads: int = attention_heads or self.config.num_attention_heads
        self._width = self.attention_heads * self.config.head_size
        self.query, self.key, self.value = (
            self.dense(self._width, name) for name in ("query", "key", "value")
        )
        self.output_dense = self.dense(self.config.hidden_size, "output")
        self.weights_dropout = self.dropout(self.config.attention_probs_dropout_prob, "dropout")

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        for layer in (self.query, self.key, self.value):
            layer.build(x_shape)
        self.output_dense.build((*x_shape[:-1], self._width))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "attention_heads": self.attention_heads}

    def call(
        self,
        x: keras.KerasTensor,
        bias: keras.KerasTensor | None = None,
        query_inputs: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        H, scale = self.attention_heads, 1 / math.sqrt(self.config.head_size)
        rows = x if query_inputs is None else query_inputs
        query = fused.dense_heads(self.query, rows, H, training)
        key, value = (fused.dense_heads(d, x, H, training) for d in (self.key, self.value))
        scores = inference_ops.attention_scores(query, key)  # (B, H, P, L)
        weights = fused.attention_weights(scores, bias, scale, self.weights_dropout, training)
        context = ops.matmul(weights, value)  # (B, H, P, K)
        if self.head_mask is not None:
            context = context * self.head_mask[:, :, None, None]
        return fused.merge_heads(context), weights
