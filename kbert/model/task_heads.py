"""Pretraining and task heads (Devlin et al. 2019, sections 3.1 and 4)."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kbert.config import BertConfig, EmbeddingConfig
from kbert.model import fused
from kbert.model.attention import ConfiguredLayer, matrix_initializer


@keras.saving.register_keras_serializable("kbert")
class MaskedLMHead(ConfiguredLayer):
    """Computes the logits of all vocabulary entries: (B, M, D) -> (B, M, V) float32.

    The output matrix is the call argument `word_embeddings`, (V, D); or the head's own `decoder`,
    (V, D), if the config sets `tie_word_embeddings` to False.
    """

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(config, **kwargs)
        self.transform = self.dense(self.config.hidden_size, "transform")
        self.layer_norm = self.norm("layer_norm")

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        self.transform.build(x_shape)
        self.layer_norm.build(x_shape)
        self.output_bias = self.add_weight(
            shape=(self.config.vocab_size,), initializer="zeros", name="output_bias"
        )
        self.decoder = None
        if not self.config.tie_word_embeddings:
            shape = (self.config.vocab_size, self.config.hidden_size)
            self.decoder = self.add_weight(
                shape=shape, initializer=matrix_initializer(self.config), name="decoder"
            )

    def call(
        self,
        x: keras.KerasTensor,
        word_embeddings: keras.KerasTensor,
        training: bool | None = None,
    ) -> keras.KerasTensor:
        approximate = self.config.hidden_act == "gelu_new"
        x = self.layer_norm(fused.dense_gelu(self.transform, x, approximate, training))
        table = word_embeddings if self.decoder is None else self.decoder  # (V, D)
        logits = ops.matmul(x, ops.transpose(ops.cast(table, x.dtype)))  # (B, M, V)
        return fused.add_bias(logits, self.output_bias, training)


@keras.saving.register_keras_serializable("kbert")
class NextSentenceHead(ConfiguredLayer):
    """Computes the logits of "B follows A" (class 0) and "B is from another document" (class 1).

    Takes `pooler_output` (B, D); returns (B, 2) float32.
    """

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(config, **kwargs)
        self.classifier = self.dense(2, "classifier")

    def build(self, pooler_output_shape: tuple[int | None, ...]) -> None:
        self.classifier.build(pooler_output_shape)

    def call(self, pooler_output: keras.KerasTensor) -> keras.KerasTensor:
        return ops.cast(self.classifier(pooler_output), "float32")


@keras.saving.register_keras_serializable("kbert")
class ClassificationHead(ConfiguredLayer):
    """Applies dropout and computes the logits of C labels, for each sequence or each token.

    Takes (..., D); returns (..., C) float32.
    """

    units: int | None = None  # number of outputs; None for `num_labels`, C
    has_dropout = True

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(config, **kwargs)
        rate = self.config.head_dropout_prob if self.has_dropout else 0.0
        self.input_dropout = self.dropout(rate, "dropout")
        self.output_dense = self.dense(self.units or self.config.num_labels, "dense")

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        self.output_dense.build(x_shape)

    def call(self, x: keras.KerasTensor, training: bool | None = None) -> keras.KerasTensor:
        x = self.input_dropout(x, training=training)
        return ops.cast(self.output_dense(x), "float32")


@keras.saving.register_keras_serializable("kbert")
class ChoiceHead(ClassificationHead):
    """Applies dropout and computes the logit of each choice: (..., D) -> (..., 1) float32."""

    units = 1


@keras.saving.register_keras_serializable("kbert")
class SpanHead(ClassificationHead):
    """Computes the start and end logits of each token: (B, L, D) -> (B, L, 2) float32."""

    units = 2
    has_dropout = False


@keras.saving.register_keras_serializable("kbert")
class EmbeddingHead(ConfiguredLayer):
    """Computes the embedding of each sequence: (B, L, D) -> (B, E) float32.

    `embedding` in the config (`EmbeddingConfig`) sets the pooling, an optional dense layer and the
    normalization. E is the width of the dense layer, or D without one. Source: the modules Pooling,
    Dense and Normalize of sentence-transformers.

    Call arguments:
        x: (B, L, D), the last hidden states.
        attention_mask: (B, L), 1 = token, 0 = padding; None = all tokens.
        pooling, normalize: override the config's settings, unless they are None.
    """

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(config, **kwargs)
        self.settings: EmbeddingConfig = self.config.embedding_settings
        self.output_dense: keras.layers.Dense | None = None
        if self.settings.dense_size:
            activation = self.settings.dense_activation
            self.output_dense = self.dense(self.settings.dense_size, "dense", activation=activation)

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        if self.output_dense:
            self.output_dense.build((x_shape[0], x_shape[-1]))

    def call(
        self,
        x: keras.KerasTensor,
        attention_mask: keras.KerasTensor | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
    ) -> keras.KerasTensor:
        x = ops.cast(x, "float32")
        mask = ops.ones_like(x[:, :, :1])
        if attention_mask is not None:
            mask = ops.cast(attention_mask, "float32")[:, :, None]  # (B, L, 1)
        x = _pool(x, mask, pooling or self.settings.pooling)  # (B, D)
        if self.output_dense:
            x = ops.cast(self.output_dense(x), "float32")  # (B, E)
        if self.settings.normalize if normalize is None else normalize:
            norm = ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))
            x = x / ops.maximum(norm, 1e-12)  # epsilon of torch's normalize
        return x


def _pool(x, mask, pooling):
    if pooling == "cls":
        return x[:, 0]
    if pooling == "max":
        return ops.max(ops.where(mask > 0, x, -3e38), axis=1)
    return ops.sum(x * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1e-9)
