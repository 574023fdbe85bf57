"""Which attention heads of a fine-tuned model matter, and which can go.

Source: Michel, Levy and Neubig 2019 (arXiv:1905.10650), section 4.1.
"""

import contextlib

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import BucketedBatches
from kbert.errors import UserError


def head_importance(model, task, items, batch_size=32, advance=lambda count: None):
    """How much the loss of an example would change if a head gave a little more or less.

    That is the mean over the examples of |dL / dm| where a head's output is multiplied by m = 1,
    divided by the L2 norm of these numbers of its layer. The paper's code takes the sum over the
    tokens of magnitudes instead; here, as in the paper's equation (2), an example counts as a
    whole. A window of a long text counts as an example.

    Args:
        model: of `kbert.model`, float32, for the task. task: `kbert.tasks.task.Task`.
        items: list of `kbert.data.bucketed_batches.EncodedExample`, labelled.
        batch_size: examples computed at a time.
        advance: called with the number of examples done since the last call.

    Returns:
        list of N float64 arrays (H,), of the heads that each block has.
    """
    batches = BucketedBatches(items, batch_size, task.max_seq_length, task.tokenizer.pad_id, seed=0)
    attentions = [block.attention for block in getattr(model, "bert", model).encoder.blocks]

    def gradients(features):
        """Of each block (H,), the sum of |dL / dm| over a batch."""
        rows = tf.shape(features["labels"])[0]
        masks = [tf.ones((rows, attention.attention_heads)) for attention in attentions]
        with tf.GradientTape() as tape:
            tape.watch(masks)
            sequences = tf.reduce_prod(tf.shape(features["input_ids"])[:-1])  # of choices: more
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
        advance(min(batch_size, len(items) - number * batch_size))
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
    """The heads to remove: the least important of all layers, but never the last of a layer.

    Args:
        importance: as `head_importance` returns it. share: float, of all heads.

    Returns:
        list of N sorted lists of numbers of heads.

    Raises:
        UserError: no head would be removed, or more than can be.
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
