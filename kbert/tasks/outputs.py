"""Outputs of models for predictions without a task, as TensorFlow functions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from kbert.model.models import BertForMaskedLM
    from kbert.tokenizer.tokenizer import BertTokenizer

MOST_MASKS = 16  # filled at most in one text


def embeddings(
    outputs: Mapping[str, tf.Tensor], features: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Returns embeddings of texts: `mean` of the last hidden states, and `cls`; (B, D) float32.

    Args:
        outputs: outputs of a BertModel. features: its inputs, including `attention_mask`.
    """
    x = tf.cast(outputs["last_hidden_state"], tf.float32)  # (B, L, D)
    mask = tf.cast(features["attention_mask"], tf.float32)[:, :, None]
    mean = tf.reduce_sum(x * mask, axis=1) / tf.reduce_sum(mask, axis=1)
    return {"mean": mean, "cls": x[:, 0]}


def masked_logits(
    model: "BertForMaskedLM", features: Mapping[str, tf.Tensor], tokenizer: "BertTokenizer"
) -> dict[str, tf.Tensor]:
    """Returns `logits` (B, M, V) of a BertForMaskedLM at the first `MOST_MASKS` [MASK] tokens.

    With fewer [MASK] tokens, the remaining slots are other tokens. Entries of the model's embedding
    table beyond the vocabulary are omitted.
    """
    masked = tf.equal(features["input_ids"], tokenizer.mask_id)
    first = tf.argsort(tf.cast(masked, tf.int32), direction="DESCENDING", stable=True)
    outputs = model({**features, "masked_positions": first[:, :MOST_MASKS]}, training=False)
    return {"logits": outputs["logits"][..., : tokenizer.vocab_size]}
