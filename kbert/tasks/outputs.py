"""What predictions without a task need of a model, as TensorFlow functions."""

import tensorflow as tf

MOST_MASKS = 16  # filled at most in one text


def embeddings(outputs, features):
    """Vectors of texts, (B, D) float32: `mean` of the tokens' last hidden states, and `cls`.

    Args:
        outputs: of a BertModel. features: what it was called with, `attention_mask` included.
    """
    x = tf.cast(outputs["last_hidden_state"], tf.float32)  # (B, L, D)
    mask = tf.cast(features["attention_mask"], tf.float32)[:, :, None]
    mean = tf.reduce_sum(x * mask, axis=1) / tf.reduce_sum(mask, axis=1)
    return {"mean": mean, "cls": x[:, 0]}


def masked_logits(model, features, tokenizer):
    """`logits` (B, M, V) of a BertForMaskedLM at the first `MOST_MASKS` tokens that are [MASK].

    Where there are fewer, other tokens follow. Entries of the model's table beyond the vocabulary
    are left out.
    """
    masked = tf.equal(features["input_ids"], tokenizer.mask_id)
    first = tf.argsort(tf.cast(masked, tf.int32), direction="DESCENDING", stable=True)
    outputs = model({**features, "masked_positions": first[:, :MOST_MASKS]}, training=False)
    return {"logits": outputs["logits"][..., : tokenizer.vocab_size]}
