"""Losses of pretraining, as sums and counts, so that they add up over batches and devices."""

import tensorflow as tf


def pretraining_sums(outputs, features):
    """Sums over a batch of what the losses and accuracies are made of.

    Args:
        outputs: dict of `mlm_logits` (B, M, V) and `nsp_logits` (B, 2), float32.
        features: dict of `kbert.features.PRETRAINING_FEATURES`.

    Returns:
        dict of float32 scalars: mlm_loss and mlm_correct over the masked slots that count,
        mlm_count of these; nsp_loss and nsp_correct over the pairs, nsp_count of these; tokens.
        Losses are in nats.
    """
    weights, masked_ids = features["masked_weights"], features["masked_ids"]
    labels = features["next_sentence_labels"]
    mlm_losses = _cross_entropy(outputs["mlm_logits"], masked_ids)  # (B, M)
    nsp_losses = _cross_entropy(outputs["nsp_logits"], labels)  # (B,)
    return {
        "mlm_loss": tf.reduce_sum(mlm_losses * weights),
        "mlm_correct": tf.reduce_sum(_correct(outputs["mlm_logits"], masked_ids) * weights),
        "mlm_count": tf.reduce_sum(weights),
        "nsp_loss": tf.reduce_sum(nsp_losses),
        "nsp_correct": tf.reduce_sum(_correct(outputs["nsp_logits"], labels)),
        "nsp_count": tf.cast(tf.size(labels), tf.float32),
        "tokens": tf.cast(tf.reduce_sum(features["attention_mask"]), tf.float32),
    }


def pretraining_loss(sums, mlm_count, nsp_count):
    """What a part of a global batch adds to mean MLM loss plus mean NSP loss; scalar, in nats.

    Source: Devlin et al. 2019, appendix A.2. Where no slot counts, as may happen when a few long
    words are masked whole, the MLM loss is 0.

    Args:
        sums: `pretraining_sums` of the part.
        mlm_count, nsp_count: float32 scalars, the counts of the whole global batch.
    """
    return sums["mlm_loss"] / tf.maximum(mlm_count, 1.0) + sums["nsp_loss"] / nsp_count


def _cross_entropy(logits, labels):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def _correct(logits, labels):
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
