"""The objective of distillation: what a teacher says, besides what the labels say."""

import dataclasses

import tensorflow as tf

from kbert.settings import TeacherConfig

# What makes a run with a teacher what it is. The teacher is known by its weights: it may move.
FIXED = tuple(f.name for f in dataclasses.fields(TeacherConfig) if f.name != "teacher")


class DistillationObjective:
    """What a run learns, and what a teacher says besides.

    The loss is (1 - soft_weight) times that of the labels, soft_weight times `soft_losses`
    (`kbert.tasks.task`), hidden_weight times the mean square of the difference between the hidden
    states of the blocks (Jiao et al. 2020, "TinyBERT", arXiv:1909.10351, equation 8, without its
    projection), and attention_weight times KL(teacher || student) of their attention (Wang et al.
    2020, "MiniLM", arXiv:2002.10957, equation 2, there of the last block). The last two are means
    over tokens, blocks and heads; padding does not count.

    Args:
        objective: of the labels, see `kbert.train.losses`.
        teacher: Teacher.
        soft: function of the outputs of student and teacher and of the features, to the sum of what
            the soft losses are, over what is labelled.
        loss, count: names of the objective's sums that are replaced in part by the soft losses.

    Attributes:
        names: of the sums of a step.
    """

    def __init__(self, objective, config, teacher, soft, loss, count):
        self._objective, self._config = objective, config
        self._teacher, self._soft = teacher, soft
        self._loss, self._count = loss, count
        self._compared = {  # name -> weight, output, difference
            name: comparison
            for name, comparison in {
                "hidden_loss": (config.hidden_weight, "hidden_states", _squared),
                "attention_loss": (config.attention_weight, "attentions", _divergence),
            }.items()
            if comparison[0]
        }
        self.names = (*objective.names, *self._compared, "soft_loss", "compared_tokens")

    def count(self, features):
        """What the losses of a part are to be divided by: labels and tokens, (2,) float32."""
        return tf.stack([self._objective.count(features), tf.reduce_sum(_mask(features))])

    def sums(self, outputs, features):
        """dict of `names` -> float32 scalar."""
        teacher_outputs = tf.nest.map_structure(tf.stop_gradient, self._teacher(features))
        sums = self._objective.sums(outputs, features)
        sums["compared_tokens"] = tf.reduce_sum(_mask(features))
        sums["soft_loss"] = self._soft(outputs, teacher_outputs, features)
        for name, (_, output, difference) in self._compared.items():
            pair = outputs[output], teacher_outputs[output]
            sums[name] = self._distance(*pair, difference, features, output == "hidden_states")
        return sums

    def _distance(self, student_outputs, teacher_outputs, difference, features, first):
        """The sum over the tokens of how far the blocks are from the teacher's.

        first: whether the outputs begin with the embeddings.
        """
        mask, total = _mask(features), 0.0
        for i, number in enumerate(self._teacher.layers):
            pair = student_outputs[i + first], teacher_outputs[number - 1 + first]
            total += tf.reduce_sum(mask * difference(*(tf.cast(x, tf.float32) for x in pair)))
        return total / len(self._teacher.layers)

    def loss(self, sums, count):
        """What a part of a global batch adds to its loss. count: of the whole global batch."""
        config = self._config
        share = config.soft_weight
        mixed = (1 - share) * sums[self._loss] + share * sums["soft_loss"]
        loss = self._objective.loss(sums | {self._loss: mixed}, count[0])
        compared = [weight * sums[name] for name, (weight, *_) in self._compared.items()]
        return loss + sum(compared) / count[1]

    def metrics(self, sums):
        """Those of the labels; loss, of all; soft_loss; label_loss; what is compared besides."""
        config, metrics = self._config, self._objective.metrics(sums)
        hard = metrics[self._loss]
        result = {"soft_loss": sums["soft_loss"] / max(sums[self._count], 1e-6)}
        loss = metrics["loss"] + config.soft_weight * (result["soft_loss"] - hard)
        for name, (weight, *_) in self._compared.items():
            result[name] = sums[name] / max(sums["compared_tokens"], 1.0)
            loss += weight * result[name]
        return metrics | result | {"loss": loss, "label_loss": metrics["loss"]}


def _mask(features):
    """(rows, L) float32, 1 for tokens; rows that only fill a batch up have none."""
    mask = tf.cast(features["attention_mask"], tf.float32)
    if "label_weights" in features:
        weights = features["label_weights"]
        counts = tf.reduce_max(tf.reshape(weights, (tf.shape(weights)[0], -1)), axis=1) > 0
        shape = (-1, *[1] * (len(mask.shape) - 1))
        mask *= tf.reshape(tf.cast(counts, tf.float32), shape)
    return tf.reshape(mask, (-1, tf.shape(mask)[-1]))  # of choices, too


def _squared(student, teacher):
    """(B, L), the mean square of the difference of hidden states (B, L, D)."""
    return tf.reduce_mean(tf.square(student - teacher), axis=-1)


def _divergence(student, teacher, least=1e-9):
    """(B, L), KL(theirs || ours) in nats of attention (B, H, L, L), mean over the heads."""
    ratio = tf.math.log(teacher + least) - tf.math.log(student + least)
    return tf.reduce_mean(tf.reduce_sum(teacher * ratio, axis=-1), axis=1)
