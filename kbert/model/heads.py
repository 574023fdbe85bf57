"""Heads of pretraining (Devlin et al. 2019, section 3.1): masked words and next sentence."""

import keras
from keras import ops

from kbert.model.attention import ConfiguredLayer


def gather_positions(x, positions):
    """Rows of each sequence.

    Args:
        x: (B, L, D). positions: (B, M) int.

    Returns:
        (B, M, D).
    """
    B, L, D = ops.shape(x)
    rows = positions + ops.arange(B, dtype=positions.dtype)[:, None] * L
    return ops.take(ops.reshape(x, (-1, D)), rows, axis=0)


@keras.saving.register_keras_serializable("kbert")
class MaskedLMHead(ConfiguredLayer):
    """Scores of every word of the vocabulary; its last matrix is that of the word embeddings.

    Call arguments:
        x: (B, M, D). word_embeddings: (V, D).

    Returns:
        (B, M, V) float32 logits.
    """

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.transform = self.dense(self.config.hidden_size, "transform")
        self.layer_norm = self.norm("layer_norm")

    def build(self, x_shape):
        self.transform.build(x_shape)
        self.layer_norm.build(x_shape)
        self.output_bias = self.add_weight(
            shape=(self.config.vocab_size,), initializer="zeros", name="output_bias"
        )

    def call(self, x, word_embeddings):
        x = self.layer_norm(self.activation(self.transform(x)))  # (B, M, D)
        logits = ops.matmul(x, ops.transpose(ops.cast(word_embeddings, x.dtype)))  # (B, M, V)
        return ops.cast(logits, "float32") + ops.cast(self.output_bias, "float32")


@keras.saving.register_keras_serializable("kbert")
class NextSentenceHead(ConfiguredLayer):
    """Whether segment B follows segment A (class 0) or is from another document (class 1).

    Call arguments:
        pooler_output: (B, D).

    Returns:
        (B, 2) float32 logits.
    """

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.classifier = self.dense(2, "classifier")

    def build(self, pooler_output_shape):
        self.classifier.build(pooler_output_shape)

    def call(self, pooler_output):
        return ops.cast(self.classifier(pooler_output), "float32")
