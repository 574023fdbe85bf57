"""Importance of attention heads, and the choice of heads to prune.

Source: Michel, Levy and Neubig 2019 (arXiv:1905.10650), section 4.1.
"""

import contextlib

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import BucketedBatches
from kbert.errors import UserError


def head_importance(model, task, items, batch_size=32):
    """Returns the importance of each head: the sensitivity of the loss to scaling its output.

    The importance is the mean over the examples of |dL / dm|, where m = 1 multiplies the head's
    output, divided by the L2 norm of these means over the heads of the layer. The paper's code sums
    magnitudes over the tokens instead; this code takes one magnitude per example, as in the paper's
    equation (2). A window of a long text counts as an example.

    Args:
        model: of `kbert.model`, float32, for the task. task: `kbert.tasks.task.Task`.
        items: list of `kbert.data.bucketed_batches.EncodedExample`, labeled.
        batch_size: examples per batch.

    Returns:
        list of N float64 arrays (H,), where H is the number of heads of that block.
    """
    batches = BucketedBatches(items, batch_size, task.max_seq_length, task.tokenizer.pad_id, seed=0)
    attentions = [block.attention for block in getattr(model, "bert", model).encoder.blocks]

    def gradients(features):
        """The sum of |dL / dm| over a batch, (H,) for each block."""
        rows = tf.shape(features["labels"])[0]
        masks = [tf.ones((rows, attention.attention_heads)) for attention in attentions]
        with tf.GradientTape() as tape:
            tape.watch(masks)
            sequences = tf.reduce_prod(tf.shape(features["input_ids"])[:-1])  # B, or B * choices
            with _masked(attentions, [tf.repeat(m, sequences // rows, axis=0) for m in masks]):
                outputs = model(features, training=False)
            losses, _ = task.losses(outputs, features["labels"])
            weights = features["label_weights"]
            axes = list(range(1, len(weights.shape)))
            counts = tf.maximum(tf.reduce_sum(weights, axes), 1e-6)
            loss = tf.reduce_sum(tf.reduce_sum(losses * weights, axes) / counts)
        return [tf.reduce_sum(tf.abs(s), axis=0) for s in tape.gradient(loss, masks)]

    specs = {
        name: tf.TensorSpec([None] * array.ndim, array.dtype)
        for name, array in batches.batch(0).items()
    }
    gradients = tf.function(gradients, [specs], autograph=False)
    totals = [np.zeros(attention.attention_heads) for attention in attentions]
    for number in range(batches.steps_per_epoch):
        features = batches.batch(number)
        for total, part in zip(totals, gradients(features), strict=True):
            total += part.numpy()
    means = [total / len(items) for total in totals]
    return [mean / max(float(np.linalg.norm(mean)), 1e-30) for mean in means]


@contextlib.contextmanager
def _masked(attentions, masks):
    try:
        for attention, mask in zip(attentions, masks, strict=True):
            attention.head_mask = mask
        yield
    finally:
        for attention in attentions:
            attention.head_mask = None


def least_important(importance, share):
    """Selects the least important heads over all layers; every layer keeps at least one head.

    Args:
        importance: as returned by `head_importance`. share: float, fraction of all heads.

    Returns:
        list of N sorted lists of indices of heads.

    Raises:
        UserError: no head would be removed, or too many.
    """
    heads = sum(len(layer) for layer in importance)
    count, most = round(share * heads), heads - len(importance)
    if not 1 <= count <= most:
        raise UserError(
            f"prune_fraction must be a share that removes 1 to {most} of the {heads} heads, of "
            f"which one stays in each of the {len(importance)} layers; got {share}, which is "
            f"{count}."
        )
    order = sorted(
        (value, layer, head)
        for layer, values in enumerate(importance)
        for head, value in enumerate(values)
    )
    removed = [[] for _ in importance]
    for _, layer, head in order:
        if count and len(removed[layer]) < len(importance[layer]) - 1:
            removed[layer].append(head)
            count -= 1
    return [sorted(heads) for heads in removed]
