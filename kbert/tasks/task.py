"""What the tasks share: from an example to what is learnt from it, predicted and scored.

Each task has a file in this folder with all that is particular to it. A task turns examples into
items, knows the loss of its model, and turns what the model computes into predictions, which are
dicts that JSON can hold.
"""

import abc
import dataclasses
import functools

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import EncodedExample
from kbert.data.columns import ColumnAliases, find_columns, has_header
from kbert.data.examples import TextExample, open_records, text_example
from kbert.errors import UserError
from kbert.model.models import BertForSequenceClassification

_TEXTS = 1024  # tokenized at once

# Checks of settings in `task.json`: whether a value fits, and what it must be.
BOOL = (lambda x: isinstance(x, bool), "true or false")
NUMBER = (lambda x: type(x) in (int, float) and abs(x) < 1e30, "a finite number")


def whole_from(least):
    """The check of a whole number that is not below `least`."""
    return lambda x: type(x) is int and least <= x < 2**31, f"a whole number from {least}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as items. windows: what a task needs to make predictions of them, or None."""

    items: list
    windows: list | None = None


def text_items(tokenizer, texts, text_pairs, max_seq_length):
    """Items without labels of texts, or of pairs of texts. text_pairs: list of str, or None."""
    items = []
    for begin in range(0, len(texts), _TEXTS):
        part = slice(begin, begin + _TEXTS)
        pairs = text_pairs and text_pairs[part]
        items += encoded_rows(tokenizer(texts[part], pairs, max_length=max_seq_length))
    return items


def encoded_rows(features):
    """A batch of features, (B, L) each, as a list of EncodedExample without their padding."""
    lengths = tf.reduce_sum(features["attention_mask"], axis=1).numpy()
    ids, types = features["input_ids"].numpy(), features["token_type_ids"].numpy()
    return [
        EncodedExample(ids[row, :length].copy(), types[row, :length].copy())
        for row, length in enumerate(lengths)
    ]


def labelled(item, labels, dtype, weights=1.0):
    """An item with labels and their weights."""
    return dataclasses.replace(
        item,
        labels=np.asarray(labels, dtype),
        label_weights=np.asarray(weights, np.float32),
    )


def softmax(logits):
    """Probabilities over the last axis; numpy."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def soft_losses(logits, teacher_logits, temperature):
    """How far probabilities are from a teacher's: T^2 KL(teacher || student), float32, in nats.

    Both are softened by the temperature T; T^2 keeps the gradient the size of that of a hard label
    (Hinton et al. 2015, arXiv:1503.02531, section 2). The cross-entropy of that paper differs by
    the teacher's entropy, which no student changes. logits, teacher_logits: (..., C) float32.
    """
    student, teacher = (tf.nn.log_softmax(x / temperature) for x in (logits, teacher_logits))
    return temperature**2 * tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)


class Task(abc.ABC):
    """What the tasks share.

    Args:
        tokenizer: BertTokenizer. label_names: tuple of str, where the task has labels.
        max_seq_length: longest example in tokens; more are cut.

    Attributes:
        name: as --task and `task.json` have it. summary: what it is for, in a few words.
        method: what a model is asked for, as --method and `kbert.Predictor` have it.
        model_class: of `kbert.model`. problem_type: of BertConfig.
        metric: the score that better weights have more of, or less if it is in `less_is_better`.
        output_names: of the model's outputs that predictions are made of.
        endpoint: Endpoint, what an export answers; None: it cannot be exported.
        max_seq_length: default of tokens of an example.
        fewest_labels: names of labels that it needs; 0: its labels have no names.
        is_classification: whether an example has one of C classes, which can have weights.
        takes_pairs: whether a text always comes with a second one.
        reads_windows: whether long texts are read in windows, so that nothing is cut.
        texts: number of texts of a prediction, at least and at most (None: any number).
        example_fields: of an example, what the method takes.
        unlabelled_as: task that reads files of texts for predictions; None: this one.
        own_settings: dict of settings in `task.json` of this task alone -> check, such as `BOOL`.
    """

    name = None
    summary = ""
    method = None
    model_class = BertForSequenceClassification
    metric = "accuracy"
    less_is_better = ()
    problem_type = None
    output_names = ("logits",)
    endpoint = None
    max_seq_length = 128
    fewest_labels = 0
    is_classification = False
    takes_pairs = False
    reads_windows = False
    texts = (1, 1)
    example_fields = ("text",)
    unlabelled_as = None
    own_settings = {}

    def __init__(self, tokenizer, label_names=None, max_seq_length=128):
        self.tokenizer = tokenizer
        self.label_names = label_names
        self.max_seq_length = max_seq_length

    @classmethod
    def from_config(cls, config, tokenizer, label_names=None, allow_no_answer=False):
        """The task of a FinetuneConfig; see `kbert.tasks.registry.make_task`."""
        return cls(tokenizer, label_names, config.max_seq_length or cls.max_seq_length)

    @classmethod
    def from_settings(cls, settings, tokenizer, config):
        """The task of the settings in `task.json`. config: BertConfig of the model."""
        names = config.label_names or tuple(str(i) for i in range(config.num_labels))
        return cls(tokenizer, names, settings["max_seq_length"])

    @classmethod
    @abc.abstractmethod
    def reader(cls, source, config, labelled):
        """The records of a source, and a function that makes an example of (where, record).

        Args: as of `kbert.tasks.examples.read_examples`.
        """

    @classmethod
    def finished(cls, examples):
        """Labelled examples of a whole file, as the task takes them."""
        return examples

    @classmethod
    @abc.abstractmethod
    def examples(cls, *texts):
        """Examples without labels of what the method takes, lists of one length."""

    def answers(self, predictor, *texts):
        """What the method says of texts. predictor: Predictor. *texts: as of `examples`."""
        return predictor.predictions(self, self.examples(*texts))

    @staticmethod
    def as_line(answer):
        """One of `answers` as the JSON object that `kbert.predict` writes."""
        return answer

    @staticmethod
    def prediction_of(output):
        """The prediction that `scores` takes, of a text's output of the endpoint (JSON types)."""
        return output

    @staticmethod
    def output_of(prediction):
        """The endpoint's output of a text, of one of `answers`."""
        return prediction

    def config_fields(self):
        """Fields of BertConfig that the task's model has."""
        names = self.label_names
        return {
            "num_labels": len(names) if names else 1,
            "label_names": names,
            "problem_type": self.problem_type,
        }

    @abc.abstractmethod
    def encode(self, examples, class_weights=None):
        """Encoded examples, labelled if the examples are. class_weights: (C,) floats, or None."""

    def losses(self, outputs, labels):
        """The loss of each label and whether it is predicted, float32, of the weights' shape."""
        return choice_losses(outputs["logits"], labels)

    def soft_losses(self, outputs, teacher_outputs, temperature):
        """How far each prediction is from a teacher's, float32, of the weights' shape."""
        return soft_losses(outputs["logits"], teacher_outputs["logits"], temperature)

    def pick(self, outputs, features):
        """What is needed of a model's outputs for predictions."""
        return {name: outputs[name] for name in self.output_names}

    @abc.abstractmethod
    def predictions(self, examples, encoded, outputs):
        """A dict for each example. outputs: as a BatchRunner returns them."""

    @abc.abstractmethod
    def scores(self, examples, predictions):
        """dict of name -> float (or a dict of such), against the labels of the examples."""

    def report(self, examples, predictions):
        """A table for a person, or ""."""
        return ""


class TextTask(Task):
    """A label of any kind for a text or a pair of texts."""

    method = "classify"
    texts = (1, 2)
    aliases = ColumnAliases()

    @staticmethod
    @abc.abstractmethod
    def label(value, where):
        """The label of an example, of what a cell or a key has. Raises BadExample."""

    @classmethod
    def column_aliases(cls, names):
        """ColumnAliases for a file. names: of its columns, in lower case; none without header."""
        return cls.aliases

    @classmethod
    def reader(cls, source, config, labelled):
        records = open_records(source, cls.name, lambda row: has_header(row, config))
        aliases = cls.column_aliases([name.lower() for name in records.names or ()])
        columns = find_columns(records, config, labelled, aliases)
        return records, functools.partial(text_example, columns, cls.label)

    @classmethod
    def examples(cls, texts, text_pairs=None):
        text_pairs = same_length(texts, text_pairs, "text_pairs") or [None] * len(texts)
        return [TextExample("", text, pair) for text, pair in zip(texts, text_pairs, strict=True)]

    @staticmethod
    def output_of(prediction):
        return prediction | {"probabilities": list(prediction.get("scores", {}).values())}

    @abc.abstractmethod
    def targets(self, examples):
        """Array of what each example is labelled with, examples first."""

    def encode(self, examples, class_weights=None):
        texts = [example.text for example in examples]
        text_pairs = [example.text_pair for example in examples]
        if text_pairs[0] is None:
            text_pairs = None
        items = text_items(self.tokenizer, texts, text_pairs, self.max_seq_length)
        if examples[0].label is not None:
            targets = self.targets(examples)
            weights = np.ones(len(targets)) if class_weights is None else class_weights[targets]
            rows = zip(items, targets, weights, strict=True)
            items = [labelled(item, target, target.dtype, weight) for item, target, weight in rows]
        return Encoded(items)


def same_length(texts, others, name):
    """`others`, if there are as many of them as texts. Raises UserError where they are not."""
    if others is not None and len(others) != len(texts):
        raise UserError(
            f"there must be as many {name} as texts; got {len(others)} and {len(texts)}."
        )
    return others


def choice_losses(logits, labels):
    """Cross-entropy of logits, and whether the largest is the right one; float32 each."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    right = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
    return losses, tf.cast(right, tf.float32)
