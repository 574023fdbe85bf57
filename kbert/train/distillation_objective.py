"""Distillation: a student learns what a teacher says, besides what the labels say."""

import abc
import dataclasses
import hashlib
import os

import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.model.weights import chosen_layers, open_weights, part_of
from kbert.settings import TeacherConfig
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.utils.logging import log

# What makes a run with a teacher what it is. The teacher is known by its weights: it may move.
FIXED = tuple(f.name for f in dataclasses.fields(TeacherConfig) if f.name != "teacher")


def start_layers(config):
    """Which encoder blocks of `init_from` the student starts as, from 1; None for all.

    Args:
        config: of a program, with the fields of TeacherConfig.
    """
    same = config.teacher and os.path.normpath(config.teacher) == os.path.normpath(
        config.init_from or ""
    )
    if not same:
        return None
    with open_weights(config.teacher) as (teacher_config, _):
        N = teacher_config.num_hidden_layers
    layers = config.layers_taken()
    return _chosen(config, -(-N // 2) if layers is None else layers, N)


def _chosen(config, layers, N):
    try:
        return chosen_layers(layers, N)
    except UserError as error:
        raise UserError(f"student_{error} {config.teacher} has {N}.") from None


def origin(layers, folder):
    """Where a student starts, in words. layers: see `start_layers`."""
    many = "s" * (len(layers) > 1)
    return f"block{many} {', '.join(map(str, layers))} of the teacher, {folder}"


def check_heads(folder, model_class):
    """Refuses a teacher without the heads of a model class, which would be fresh ones."""
    with open_weights(folder, parts=model_class.task_heads) as (_, weights):
        lacking = set(model_class.task_heads) - {part_of(name) for name in weights}
    if lacking:
        raise UserError(
            f"the teacher, {folder}, has no head {', '.join(sorted(lacking))} to learn from. Take "
            f"one that was trained for what the student is to learn."
        )


class Teacher:
    """The teacher of a run; `load` makes its model.

    Args:
        config: of the run. student: BertConfig. tokenizer: of the student.

    Attributes:
        layers: numbers, from 1, of the blocks that the student's blocks learn from.
        fingerprint: of its weights. parameters: int, how many there are.

    Raises:
        UserError: it cannot teach that student.
    """

    def __init__(self, config, student, tokenizer):
        self._settings = config
        folder, self._model = config.teacher, None
        self.fingerprint = self.parameters = None
        with open_weights(folder) as (teacher_config, _):
            self.config = teacher_config
        if BertTokenizer.from_pretrained(folder).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the student's vocabulary or casing differs from that of its teacher, {folder}: "
                f"they would read other words. Take a student with the teacher's vocabulary."
            )
        if config.max_seq_length > teacher_config.max_position_embeddings:
            raise UserError(
                f"max_seq_length must be at most {teacher_config.max_position_embeddings}, the "
                f"positions that the teacher, {folder}, has; got {config.max_seq_length}."
            )
        if student.type_vocab_size > teacher_config.type_vocab_size:
            raise UserError(
                f"the student tells {student.type_vocab_size} segments apart, and its teacher, "
                f"{folder}, {teacher_config.type_vocab_size}. Take a teacher with as many."
            )
        self._compares = bool(config.hidden_weight or config.attention_weight)
        self.layers = ()
        if self._compares:
            self.layers = self._mapped(student)
            self._check_sizes(student)
        elif config.student_layers and start_layers(config) is None:
            raise UserError(
                "student_layers says nothing about a student that does not start as its teacher's "
                "blocks and is not compared with them. Leave it or --init_from out, or take "
                "--hidden_weight or --attention_weight."
            )

    def _mapped(self, student):
        N, M = self.config.num_hidden_layers, student.num_hidden_layers
        layers = self._settings.layers_taken()
        if layers is None and M > N:
            raise UserError(
                f"the student has {M} blocks and its teacher, {self._settings.teacher}, {N}: they "
                f"cannot be compared. Take --hidden_weight=0 --attention_weight=0."
            )
        layers = _chosen(self._settings, M if layers is None else layers, N)
        if len(layers) != M:
            raise UserError(
                f"student_layers must name as many blocks of the teacher as the student has, {M}; "
                f"got {self._settings.student_layers}."
            )
        return layers

    def _check_sizes(self, student):
        heads = [self.config.block_heads(number - 1) for number in self.layers]
        sizes = {
            "hidden_weight": ("width", student.hidden_size, self.config.hidden_size),
            "attention_weight": (
                "heads",
                *(", ".join(map(str, x)) for x in (_heads(student), heads)),
            ),
        }
        for weight, (what, student_size, teacher_size) in sizes.items():
            if getattr(self._settings, weight) and student_size != teacher_size:
                raise UserError(
                    f"{weight} compares block by block: the student must have the teacher's "
                    f"{what}, {teacher_size}; got {student_size}. Take --{weight}=0 for this "
                    f"student."
                )

    def load(self, model_class):
        """Makes the model, in the scope of the strategy; its weights are never trained."""
        settings = self._settings
        model = model_class.from_pretrained(settings.teacher, dtype=settings.precision)
        model.trainable = False
        self.show(model)
        digest = hashlib.sha256()
        for weight in model.weights:
            digest.update(np.ascontiguousarray(weight.numpy()))
        self._model, self.fingerprint = model, digest.hexdigest()
        self.parameters = model.count_params()

    def show(self, model):
        """Lets a model, the student's or the teacher's, give what is compared."""
        model.bert.output_hidden_states = bool(self._settings.hidden_weight)
        model.bert.output_attentions = bool(self._settings.attention_weight)

    def __call__(self, features):
        """The outputs of its model."""
        return self._model(features, training=False)

    def describe(self):
        """A line on it."""
        config, settings = self.config, self._settings
        parts = [f"probabilities ({settings.soft_weight:g} of the weight)"]
        parts += ["hidden states"] * bool(settings.hidden_weight)
        parts += ["attention"] * bool(settings.attention_weight)
        blocks = f" of its blocks {', '.join(map(str, self.layers))}" if self._compares else ""
        return (
            f"teacher: {settings.teacher}, {config.num_hidden_layers} layers, width "
            f"{config.hidden_size}; what is learnt from it: {', '.join(parts)}{blocks}"
        )


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


def _heads(config):
    return [config.block_heads(i) for i in range(config.num_hidden_layers)]


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


class DistillMixin(abc.ABC):
    """What a run with a teacher adds to one without: put before its class.

    Attributes:
        teacher_class: of the teacher's model, of `kbert.model`.
    """

    teacher_class = None

    @abc.abstractmethod
    def make_distillation_objective(self):
        """DistillationObjective of the run's objective."""

    def check_model(self, bert_config, tokenizer):
        super().check_model(bert_config, tokenizer)
        self.teacher = Teacher(self.config, bert_config, tokenizer)

    def find(self, state):
        check_heads(self.config.teacher, self.teacher_class)
        super().find(state)
        self.objective = self.make_distillation_objective()
        self._teacher_of_checkpoint = state["data"]["teacher"] if state else None

    def make_model(self):
        whole = self.bert_config
        if self.config.attention_weight:  # dropped attention says nothing about what was there
            self.bert_config = dataclasses.replace(whole, attention_probs_dropout_prob=0.0)
        model = super().make_model()
        self.bert_config = whole
        self.teacher.show(model)
        self.teacher.load(self.teacher_class)
        if self._teacher_of_checkpoint not in (None, self.teacher.fingerprint):
            raise UserError(
                f"the weights of the teacher, {self.config.teacher}, are not those that the run "
                f"has learnt from so far. Put them back, or take another --output_dir."
            )
        return model

    def identity(self):
        return super().identity() | {"teacher": self.teacher.fingerprint}

    def describe(self):
        super().describe()
        log(self.teacher.describe())
