"""Losses of sentence encoders: functions of the embeddings of a batch, as in sentence-transformers.

Each function returns two float32 tensors (B,): the loss of each example, and 1 if the example is
predicted correctly, else 0 (always 0 for losses of pairs with a score). Examples of weight 0 pad
the batch; no example is compared with them.

    B examples   T texts per example: anchor, positive, negatives   E width of the embeddings
"""

import tensorflow as tf

# The logit of a candidate that is excluded.
_EXCLUDED = -1e30


def ranking_losses(
    vectors: tf.Tensor, text_ids: tf.Tensor, weights: tf.Tensor, scale: float, symmetric: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the losses of `multiple_negatives_ranking`.

    The loss is the cross-entropy of the positive among the positives and negatives of all examples,
    whose logits are the cosines with the anchor times `scale`. Candidates that are similar to the
    anchor are excluded: texts that equal the anchor or its positive, and positives of an equal
    anchor. Source: Henderson et al. 2017 (arXiv:1705.00652), section 4.4.

    Args:
        vectors: (B, T, E) float32.
        text_ids: (B, T) int32, equal for equal texts.
        weights: (B,) float32, 0 for padding.
        scale: factor of the cosines.
        symmetric: whether to average this loss and the cross-entropy of the anchor among the
            anchors of all examples. Source: Radford et al. 2021 (arXiv:2103.00020), figure 3.
    """
    B, T = tf.shape(vectors)[0], vectors.shape[1]
    vectors = normalized(vectors)
    anchors, positives = text_ids[:, 0], text_ids[:, 1]
    candidates = tf.concat(tf.unstack(vectors[:, 1:], axis=1), axis=0)  # ((T - 1) * B, E)
    texts = tf.concat(tf.unstack(text_ids[:, 1:], axis=1), axis=0)
    logits = scale * tf.matmul(vectors[:, 0], candidates, transpose_b=True)  # (B, (T - 1) * B)
    own = tf.eye(B, dtype=tf.bool) if T == 2 else _widened(tf.eye(B, dtype=tf.bool), T - 2)
    same = _widened(anchors[:, None] == anchors, T - 2)
    same |= (texts == anchors[:, None]) | (texts == positives[:, None])
    same |= tf.tile(weights == 0, [T - 1])
    losses, right = _cross_entropy(tf.where(same & ~own, _EXCLUDED, logits))
    if symmetric:
        same = (anchors == anchors[:, None]) | (positives == positives[:, None])
        same |= (anchors == positives[:, None]) | (weights == 0)
        logits = tf.transpose(logits[:, :B])
        back, _ = _cross_entropy(tf.where(same & ~own[:, :B], _EXCLUDED, logits))
        losses = (losses + back) / 2
    return losses, right


def _widened(mask, times):
    """Appends `times` * B columns of False to a mask (B, B)."""
    return tf.concat([mask, *[tf.zeros_like(mask)] * times], axis=1)


def _cross_entropy(logits):
    """Returns the cross-entropy with label i in row i, and 1 if this logit is highest, else 0."""
    labels = tf.range(tf.shape(logits)[0])
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    right = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
    return losses, tf.cast(right, tf.float32)


def cosent_losses(
    vectors: tf.Tensor, scores: tf.Tensor, weights: tf.Tensor, scale: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the losses of `cosent`: for each example log(1 + sum of exp(scale * (s_i - s_j))).

    Here, s_i is the cosine of the two texts of example i. The sum is over all pairs of examples i
    and j where i has the lower score, so only the order of the scores matters. Source: Su 2022
    (https://kexue.fm/archives/8847), as in sentence-transformers' CoSENTLoss.

    Args:
        vectors: (B, 2, E) float32.
        scores: (B,) float32, the labels.
        weights: (B,) float32, 0 for padding.
        scale: factor of the cosines.
    """
    logits = scale * _cosines(vectors)
    counts = (weights[:, None] > 0) & (weights > 0) & (scores[:, None] < scores)
    logits = tf.where(counts, logits[:, None] - logits, _EXCLUDED)
    loss = tf.reduce_logsumexp(tf.concat([[0.0], tf.reshape(logits, [-1])], axis=0))
    return tf.fill(tf.shape(scores), loss), tf.zeros_like(scores)


def cosine_losses(vectors: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the losses of `cosine_similarity`: the squared error of the cosine.

    Args:
        vectors: (B, 2, E) float32.
        scores: (B,) float32, in [-1, 1].
    """
    return tf.square(_cosines(vectors) - scores), tf.zeros_like(scores)


def triplet_losses(vectors: tf.Tensor, margin: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the losses of `triplet`: max(0, |a - p| - |a - n| + margin), averaged over n.

    Here, a is the anchor, p the positive, and n runs over the negatives; a prediction is correct if
    the anchor is closer to the positive than to all negatives. Source: Schroff et al. 2015
    (arXiv:1503.03832), with the Euclidean distance, as in sentence-transformers' TripletLoss, which
    has one negative.

    Args:
        vectors: (B, T, E) float32, T > 2.
        margin: the margin of the formula, a distance.
    """
    # Like torch's pairwise_distance, add 1e-6: the norm has no derivative at 0.
    distances = tf.norm(vectors[:, :1] - vectors[:, 1:] + 1e-6, axis=-1)  # (B, T - 1)
    gaps = distances[:, :1] - distances[:, 1:]
    right = tf.reduce_all(gaps < 0, axis=1)
    return tf.reduce_mean(tf.nn.relu(gaps + margin), axis=1), tf.cast(right, tf.float32)


def normalized(vectors: tf.Tensor) -> tf.Tensor:
    """Scales vectors, (..., E), to length 1."""
    return tf.math.l2_normalize(vectors, axis=-1, epsilon=1e-24)  # of the squared length


def _cosines(vectors):
    vectors = normalized(vectors)
    return tf.reduce_sum(vectors[:, 0] * vectors[:, 1], axis=-1)
