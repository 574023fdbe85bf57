"""The distillation objective: a weighted sum of the label loss and losses against a teacher."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import tensorflow as tf

from kbert.settings import TeacherConfig

if TYPE_CHECKING:
    from kbert.compression.teacher import Teacher

# Settings that affect the results of a run. `teacher`, a path, is not among them, because a run
# identifies its teacher by the weights.
FIXED_SETTINGS = tuple(f.name for f in dataclasses.fields(TeacherConfig) if f.name != "teacher")


class Objective(Protocol):
    """A training objective; `kbert.train.losses.MaskedLMObjective` describes the members."""

    names: tuple[str, ...]
    compares_examples: bool

    def count(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor: ...

    def sums(
        self, outputs: Mapping[str, Any], features: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]: ...

    def loss(self, sums: dict[str, tf.Tensor], count: tf.Tensor) -> tf.Tensor: ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]: ...


class DistillationObjective:
    """The loss of a run with a teacher.

    The loss is (1 - soft_weight) times the loss on the labels, plus soft_weight times `soft_losses`
    (`kbert.tasks.losses`), plus hidden_weight times the mean squared difference between the blocks'
    hidden states (Jiao et al. 2020, "TinyBERT", arXiv:1909.10351, equation 8, without its
    projection), plus attention_weight times KL(teacher || student) of the blocks' attention (Wang
    et al. 2020, "MiniLM", arXiv:2002.10957, equation 2, which uses the last block only). The hidden
    and attention terms are means over tokens, blocks and heads, without padding. In pretraining,
    the NSP loss is added with weight 1; the teacher does not affect it.

    Args:
        objective: objective for the labels; see `kbert.train.losses`.
        config: temperature and weights of the losses.
        teacher: the teacher, which is loaded before the first step.
        soft: function of the student's outputs, the teacher's outputs and the features that returns
            the sum of the soft losses over all labels.
        loss, count: names of two of the objective's sums: the label loss that `soft_weight`
            weakens in favor of the soft loss, and its denominator.

    Attributes:
        names: names of the sums of a step.
    """

    names: tuple[str, ...]
    compares_examples: bool = False

    def __init__(
        self,
        objective: Objective,
        config: TeacherConfig,
        teacher: "Teacher",
        soft: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, tf.Tensor]], tf.Tensor],
        loss: str,
        count: str,
    ) -> None:
        self._objective, self._config = objective, config
        self._teacher, self._soft = teacher, soft
        self._loss, self._count = loss, count
        compared = {  # name -> weight, output, difference
            "hidden_loss": (config.hidden_weight, "hidden_states", _squared_error),
            "attention_loss": (config.attention_weight, "attentions", _divergence),
        }
        self._compared = {name: parts for name, parts in compared.items() if parts[0]}
        self.names = (*objective.names, *self._compared, "soft_loss", "compared_tokens")

    def count(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the denominators of the losses, (2,) float32: the objective's, and of tokens."""
        return tf.stack([self._objective.count(features), tf.reduce_sum(_token_mask(features))])

    def sums(
        self, outputs: Mapping[str, Any], features: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns a dict of `names` -> float32 scalar."""
        teacher_outputs = tf.nest.map_structure(tf.stop_gradient, self._teacher(features))
        sums = self._objective.sums(outputs, features)
        sums["compared_tokens"] = tf.reduce_sum(_token_mask(features))
        sums["soft_loss"] = self._soft(outputs, teacher_outputs, features)
        for name, (_, output, difference) in self._compared.items():
            pair = outputs[output], teacher_outputs[output]
            sums[name] = self._distance(*pair, difference, features, output == "hidden_states")
        return sums

    def _distance(self, student_outputs, teacher_outputs, difference, features, first):
        """Returns the difference from the teacher: the mean over the blocks, summed over tokens.

        `first` is 1 if the outputs begin with the embeddings.
        """
        mask, total = _token_mask(features), 0.0
        for i, number in enumerate(self._teacher.layers):
            pair = student_outputs[i + first], teacher_outputs[number - 1 + first]
            total += tf.reduce_sum(mask * difference(*(tf.cast(x, tf.float32) for x in pair)))
        return total / len(self._teacher.layers)

    def loss(self, sums: dict[str, tf.Tensor], count: tf.Tensor) -> tf.Tensor:
        """Returns the contribution of a part of a global batch to the loss; see `Objective`."""
        config = self._config
        share = config.soft_weight
        mixed = (1 - share) * sums[self._loss] + share * sums["soft_loss"]
        loss = self._objective.loss(sums | {self._loss: mixed}, count[0])
        compared = [weight * sums[name] for name, (weight, *_) in self._compared.items()]
        return loss + sum(compared) / count[1]

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of the objective for the labels, and the losses of distillation.

        `loss` is the total loss, and `label_loss` the loss of the objective for the labels. The
        others are `soft_loss` and, if their weights are not 0, `hidden_loss` and `attention_loss`.
        """
        config, metrics = self._config, self._objective.metrics(sums)
        hard = metrics[self._loss]
        result = {"soft_loss": sums["soft_loss"] / max(sums[self._count], 1e-6)}
        loss = metrics["loss"] + config.soft_weight * (result["soft_loss"] - hard)
        for name, (weight, *_) in self._compared.items():
            result[name] = sums[name] / max(sums["compared_tokens"], 1.0)
            loss += weight * result[name]
        return metrics | result | {"loss": loss, "label_loss": metrics["loss"]}


def _token_mask(features):
    """Returns (rows, L) float32: 1 for tokens, 0 for padding and for rows that pad the batch."""
    mask = tf.cast(features["attention_mask"], tf.float32)
    if "label_weights" in features:
        weights = features["label_weights"]
        counts = tf.reduce_max(tf.reshape(weights, (tf.shape(weights)[0], -1)), axis=1) > 0
        shape = (-1, *[1] * (len(mask.shape) - 1))
        mask *= tf.reshape(tf.cast(counts, tf.float32), shape)
    return tf.reshape(mask, (-1, tf.shape(mask)[-1]))  # flattens multiple-choice features


def _squared_error(student, teacher):
    """Returns the mean squared differences, (B, L), of hidden states, (B, L, D)."""
    return tf.reduce_mean(tf.square(student - teacher), axis=-1)


def _divergence(student, teacher, epsilon=1e-9):
    """Returns KL(teacher || student), (B, L) nats, of attention (B, H, L, L), averaged over H."""
    ratio = tf.math.log(teacher + epsilon) - tf.math.log(student + epsilon)
    return tf.reduce_mean(tf.reduce_sum(teacher * ratio, axis=-1), axis=1)
