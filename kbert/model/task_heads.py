"""Pretraining and task heads (Devlin et al. 2019, sections 3.1 and 4)."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kbert.config import BertConfig
from kbert.model import fused
from kbert.model.attention import ConfiguredLayer


@keras.saving.register_keras_serializable("kbert")
class MaskedLMHead(ConfiguredLayer):
    """Predicts the logits of all vocabulary entries: (B, M, D) -> (B, M, V) float32.

    The output matrix is `word_embeddings`, (V, D), unless the config sets `tie_word_embeddings` to
    False.
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
                shape=shape, initializer=self.initializer(), name="decoder"
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
    """Computes the logits of B following A (class 0) and of B from another document (class 1).

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
    """Dropout, then the logits of C labels, for a sequence (B, D) or its tokens (B, L, D).

    Takes (..., D); returns (..., C) float32.
    """

    units: int | None = None  # None for C
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
    """Dropout, then the logit of one choice: (..., D) -> (..., 1) float32."""

    units = 1


@keras.saving.register_keras_serializable("kbert")
class SpanHead(ClassificationHead):
    """The start and end logits of each token, without dropout: (B, L, D) -> (B, L, 2) float32."""

    units = 2
    has_dropout = False
