"""Objectives: losses as sums and counts, which can be added over batches and devices."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.model.fused import cross_entropy

if TYPE_CHECKING:
    from kbert.tasks.task import Task


class PretrainingObjective:
    """Mean MLM loss plus mean NSP loss of a global batch, in nats.

    Source: Devlin et al. 2019, appendix A.2. If no masked slot has weight, which can happen with
    whole-word masking of a few long words, the MLM loss is 0.

    Attributes:
        names: names of the sums of a step, including "tokens".
    """

    names: tuple[str, ...] = (
        *("mlm_loss", "mlm_correct", "mlm_count"),
        *("nsp_loss", "nsp_correct", "nsp_count", "tokens"),
    )

    def __init__(self, global_batch_size: int) -> None:
        self._nsp_count = float(global_batch_size)

    def count(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the denominator of the loss, to be summed over the global batch."""
        return tf.reduce_sum(features["masked_weights"])

    def sums(
        self, outputs: Mapping[str, tf.Tensor], features: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns sums over a batch, from which losses and accuracies are computed.

        Args:
            outputs: dict of `mlm_logits` (B, M, V) and `nsp_logits` (B, 2), float32.
            features: dict of `kbert.features.PRETRAINING_FEATURES`.

        Returns:
            dict of float32 scalars: mlm_loss and mlm_correct, summed over the masked slots with
            weight, and mlm_count, the number of these slots; nsp_loss and nsp_correct, summed over
            the pairs, and nsp_count, the number of pairs; tokens, the number of tokens.
        """
        weights, masked_ids = features["masked_weights"], features["masked_ids"]
        labels = features["next_sentence_labels"]
        mlm_losses = cross_entropy(outputs["mlm_logits"], masked_ids)  # (B, M)
        nsp_losses = cross_entropy(outputs["nsp_logits"], labels)  # (B,)
        return {
            "mlm_loss": tf.reduce_sum(mlm_losses * weights),
            "mlm_correct": tf.reduce_sum(_correct(outputs["mlm_logits"], masked_ids) * weights),
            "mlm_count": tf.reduce_sum(weights),
            "nsp_loss": tf.reduce_sum(nsp_losses),
            "nsp_correct": tf.reduce_sum(_correct(outputs["nsp_logits"], labels)),
            "nsp_count": tf.cast(tf.size(labels), tf.float32),
            "tokens": tf.cast(tf.reduce_sum(features["attention_mask"]), tf.float32),
        }

    def loss(self, sums: Mapping[str, tf.Tensor], count: tf.Tensor) -> tf.Tensor:
        """Returns what a part of a global batch adds to the loss.

        Args:
            sums: sums of the part. count: `count` of the global batch.
        """
        return sums["mlm_loss"] / tf.maximum(count, 1.0) + sums["nsp_loss"] / self._nsp_count

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns loss, mlm_loss, nsp_loss (nats), mlm_accuracy and nsp_accuracy (fractions).

        All are NaN if the sums contain no step.
        """
        nsp_count = sums["nsp_count"] or math.nan
        mlm_count = max(sums["mlm_count"], 1.0) if sums["nsp_count"] else math.nan
        mlm_loss, nsp_loss = sums["mlm_loss"] / mlm_count, sums["nsp_loss"] / nsp_count
        return {
            "loss": mlm_loss + nsp_loss,
            "mlm_loss": mlm_loss,
            "nsp_loss": nsp_loss,
            "mlm_accuracy": sums["mlm_correct"] / mlm_count,
            "nsp_accuracy": sums["nsp_correct"] / nsp_count,
        }


class TaskObjective:
    """Mean loss of a global batch over its labeled positions or examples.

    Args:
        task: the task, which computes the losses.
    """

    names: tuple[str, ...] = ("loss", "correct", "count", "tokens")

    def __init__(self, task: "Task") -> None:
        self._task = task

    def count(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """See `PretrainingObjective.count`."""
        return tf.reduce_sum(features["label_weights"])

    def sums(
        self, outputs: Mapping[str, tf.Tensor], features: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns a dict of `names` -> float32 scalar."""
        losses, correct = self._task.losses(outputs, features["labels"])
        weights = features["label_weights"]
        return {
            "loss": tf.reduce_sum(losses * weights),
            "correct": tf.reduce_sum(correct * weights),
            "count": tf.reduce_sum(weights),
            "tokens": tf.cast(tf.reduce_sum(features["attention_mask"]), tf.float32),
        }

    def loss(self, sums: Mapping[str, tf.Tensor], count: tf.Tensor) -> tf.Tensor:
        """See `PretrainingObjective.loss`."""
        return sums["loss"] / tf.maximum(count, 1e-6)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the weighted loss and accuracy (0 for regression); NaN without steps."""
        count = sums["count"] or math.nan
        return {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count}


def _correct(logits, labels):
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
