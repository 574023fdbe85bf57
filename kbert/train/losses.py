"""Training objectives: losses as sums and counts that can be added over batches and devices."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.model.fused import cross_entropy
from kbert.tasks.outputs import TensorDict

if TYPE_CHECKING:
    from kbert.tasks.task import Task


class MaskedLMObjective:
    """Mean MLM loss of a global batch, in nats.

    If no masked slot has weight (possible with whole-word masking of long words), the loss is 0.

    Attributes:
        names: names of the sums that `sums` returns, including "tokens".
        compares_examples: whether the loss of an example depends on the other examples.
        mlm_logits: name of the model output with the MLM logits, (B, M, V) float32.
    """

    names: tuple[str, ...] = ("mlm_loss", "mlm_correct", "mlm_count", "tokens")
    compares_examples: bool = False
    mlm_logits: str = "logits"

    def count(self, features: TensorDict) -> tf.Tensor:
        """Returns the denominator of the loss for a batch; the trainer sums it over replicas."""
        return tf.reduce_sum(features["masked_weights"])

    def sums(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        """Returns sums over a batch, from which losses and accuracies are computed.

        They are float32 scalars: "mlm_loss" and "mlm_correct", summed over the masked slots with
        weight; "mlm_count", the number of these slots; "tokens", the number of tokens.
        """
        weights, masked_ids = features["masked_weights"], features["masked_ids"]
        logits = outputs[self.mlm_logits]
        losses = cross_entropy(logits, masked_ids)  # (B, M)
        return {
            "mlm_loss": tf.reduce_sum(losses * weights),
            "mlm_correct": tf.reduce_sum(_correct(logits, masked_ids) * weights),
            "mlm_count": tf.reduce_sum(weights),
            "tokens": tf.cast(tf.reduce_sum(features["attention_mask"]), tf.float32),
        }

    def loss(self, sums: TensorDict, count: tf.Tensor) -> tf.Tensor:
        """Returns the contribution of a part of a global batch to the loss, a scalar.

        `sums` are over the part, and `count` is summed over the global batch.
        """
        return sums["mlm_loss"] / tf.maximum(count, 1.0)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns "loss" and "mlm_loss" (nats), which are equal, and "mlm_accuracy" (a fraction).

        All are NaN if the sums contain no step.
        """
        count = max(sums["mlm_count"], 1.0) if sums["tokens"] else math.nan
        loss = sums["mlm_loss"] / count
        return {"loss": loss, "mlm_loss": loss, "mlm_accuracy": sums["mlm_correct"] / count}


class PretrainingObjective(MaskedLMObjective):
    """Mean MLM loss plus mean NSP loss of a global batch, in nats.

    Source: Devlin et al. 2019, appendix A.2.

    Args:
        global_batch_size: number of pairs in a global batch.
    """

    names: tuple[str, ...] = (
        *("mlm_loss", "mlm_correct", "mlm_count"),
        *("nsp_loss", "nsp_correct", "nsp_count", "tokens"),
    )
    mlm_logits: str = "mlm_logits"

    def __init__(self, global_batch_size: int) -> None:
        self._nsp_count = float(global_batch_size)

    def sums(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        """Returns the sums of `MaskedLMObjective`, and the NSP sums, from `nsp_logits` (B, 2).

        The NSP sums are "nsp_loss", "nsp_correct" and "nsp_count", the number of pairs.
        """
        logits, labels = outputs["nsp_logits"], features["next_sentence_labels"]
        return super().sums(outputs, features) | {
            "nsp_loss": tf.reduce_sum(cross_entropy(logits, labels)),
            "nsp_correct": tf.reduce_sum(_correct(logits, labels)),
            "nsp_count": tf.cast(tf.size(labels), tf.float32),
        }

    def loss(self, sums: TensorDict, count: tf.Tensor) -> tf.Tensor:
        """See `MaskedLMObjective.loss`."""
        return super().loss(sums, count) + sums["nsp_loss"] / self._nsp_count

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns "loss", "mlm_loss", "nsp_loss" (nats), "mlm_accuracy" and "nsp_accuracy".

        All are NaN if the sums contain no step.
        """
        mlm, nsp_count = super().metrics(sums), sums["nsp_count"] or math.nan
        nsp_loss = sums["nsp_loss"] / nsp_count
        return {
            "loss": mlm["mlm_loss"] + nsp_loss,
            "mlm_loss": mlm["mlm_loss"],
            "nsp_loss": nsp_loss,
            "mlm_accuracy": mlm["mlm_accuracy"],
            "nsp_accuracy": sums["nsp_correct"] / nsp_count,
        }


class TaskObjective:
    """Mean loss over the labels of a global batch, weighted by `label_weights`.

    Args:
        task: the task that computes the losses.
    """

    names: tuple[str, ...] = ("loss", "correct", "count", "tokens")
    compares_examples: bool = False

    def __init__(self, task: "Task") -> None:
        self._task = task

    def count(self, features: TensorDict) -> tf.Tensor:
        """See `MaskedLMObjective.count`."""
        return tf.reduce_sum(features["label_weights"])

    def sums(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        """Returns a dict of `names` -> float32 scalar."""
        losses, correct = self._losses(outputs, features)
        weights = features["label_weights"]
        return {
            "loss": tf.reduce_sum(losses * weights),
            "correct": tf.reduce_sum(correct * weights),
            "count": tf.reduce_sum(weights),
            "tokens": tf.cast(tf.reduce_sum(features["attention_mask"]), tf.float32),
        }

    def _losses(self, outputs, features):
        return self._task.losses(outputs, features["labels"])

    def loss(self, sums: TensorDict, count: tf.Tensor) -> tf.Tensor:
        """See `MaskedLMObjective.loss`."""
        return sums["loss"] / tf.maximum(count, 1e-6)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns "loss" and "accuracy", weighted means; the accuracy is 0 for regression.

        Both are NaN if the sums contain no step.
        """
        count = sums["count"] or math.nan
        return {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count}


class ComparingObjective(TaskObjective):
    """Mean loss of a global batch whose examples are compared with each other.

    If a batch has several parts, on replicas or in slices, the vectors of all parts are computed
    first, without gradients. The derivatives of the loss by these vectors, `label_gradients`, then
    give the gradients of each part, so the loss and the update do not depend on the number of
    parts. Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup" (arXiv:2101.06983).
    """

    compares_examples: bool = True

    def label_features(self, vectors: tf.Tensor, features: TensorDict) -> TensorDict:
        """Computes the losses of a global batch, and their derivatives by the vectors.

        Each part of the batch computes its sums from its rows of these features. They are float32:
        "label_gradients" (B, T, E), the derivatives of the weighted sum of the losses;
        "label_losses" (B,); and "label_correct" (B,).
        """
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            losses, correct = self._losses({"embedding": vectors}, features)
            total = tf.reduce_sum(losses * features["label_weights"])
        gradients = tape.gradient(total, vectors)
        return {
            "label_gradients": gradients,
            "label_losses": losses,
            "label_correct": correct,
        }

    def sums(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        """Returns a dict of `names` -> float32 scalar; uses `label_features` if present."""
        sums = super().sums(outputs, features)
        if "label_gradients" in features:
            # The value is 0; its gradient equals the gradient of the global batch's loss.
            product = tf.reduce_sum(outputs["embedding"] * features["label_gradients"])
            sums["loss"] += product - tf.stop_gradient(product)
        return sums

    def _losses(self, outputs, features):
        if "label_losses" in features:
            return features["label_losses"], features["label_correct"]
        weights = features["label_weights"]
        return self._task.losses(outputs, features["labels"], weights)


def _correct(logits, labels):
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
