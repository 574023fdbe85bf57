"""The tasks: what is made of an example, what is learnt from it, what is predicted and scored.

A task turns examples into items, knows the loss of its model, and turns what the model computes
into predictions, which are dicts that JSON can hold.
"""

import abc
import dataclasses

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import EncodedExample
from kbert.model.models import BertForMultipleChoice, BertForSequenceClassification
from kbert.tasks import metrics
from kbert.tasks.labels import label_numbers

_TEXTS = 1024  # tokenized at once


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as items. windows: what a task needs to make predictions of them, or None."""

    items: list
    windows: list | None = None


def text_items(tokenizer, texts, text_pairs, max_seq_length):
    """Items without labels of texts, or of pairs of texts; the ids are those of the tokenizer.

    Args:
        texts: list of str. text_pairs: list of str, or None.
    """
    items = []
    for begin in range(0, len(texts), _TEXTS):
        part = slice(begin, begin + _TEXTS)
        features = tokenizer(
            texts[part], text_pairs and text_pairs[part], max_length=max_seq_length
        )
        items += encoded_rows(features)
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
    the teacher's entropy, which no student changes.

    Args:
        logits, teacher_logits: (..., C) float32. temperature: float.

    Returns:
        (...) float32.
    """
    student, teacher = (tf.nn.log_softmax(x / temperature) for x in (logits, teacher_logits))
    return temperature**2 * tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)


class Task(abc.ABC):
    """What the tasks share.

    Args:
        tokenizer: BertTokenizer. label_names: tuple of str, where the task has labels.
        max_seq_length: longest example in tokens; more are cut.

    Attributes:
        model_class: of `kbert.model`. metric: the score that better weights have more of.
        problem_type: of BertConfig.
    """

    model_class = BertForSequenceClassification
    metric = "accuracy"
    problem_type = None

    def __init__(self, tokenizer, label_names=None, max_seq_length=128):
        self.tokenizer = tokenizer
        self.label_names = label_names
        self.max_seq_length = max_seq_length

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
        """Encoded examples, labelled if the examples are.

        Args:
            examples: list of the task's examples. class_weights: (C,) floats, or None.
        """

    @abc.abstractmethod
    def losses(self, outputs, labels):
        """The loss of each label and whether it is predicted, float32, of the weights' shape."""

    def soft_losses(self, outputs, teacher_outputs, temperature):
        """How far each prediction is from a teacher's, float32, of the weights' shape.

        Args:
            outputs, teacher_outputs: of the model and of the teacher. temperature: see
                `soft_losses`.
        """
        return soft_losses(outputs["logits"], teacher_outputs["logits"], temperature)

    def pick(self, outputs, features):
        """What is needed of a model's outputs for predictions."""
        return {"logits": outputs["logits"]}

    @abc.abstractmethod
    def predictions(self, examples, encoded, outputs):
        """A dict for each example. outputs: as a BatchRunner returns them."""

    @abc.abstractmethod
    def scores(self, examples, predictions):
        """dict of name -> float (or a dict of such), against the labels of the examples."""

    def report(self, examples, predictions):
        """A table for a person, or ""."""
        return ""


class _TextTask(Task):
    """A label of any kind for a text or a pair of texts."""

    @abc.abstractmethod
    def targets(self, examples):
        """Array of what each example is labelled with, examples first."""

    def encode(self, examples, class_weights=None):
        text_pairs = None
        if examples[0].text_pair is not None:
            text_pairs = [example.text_pair for example in examples]
        texts = [example.text for example in examples]
        items = text_items(self.tokenizer, texts, text_pairs, self.max_seq_length)
        if examples[0].label is not None:
            targets = self.targets(examples)
            weights = np.ones(len(targets)) if class_weights is None else class_weights[targets]
            rows = zip(items, targets, weights, strict=True)
            items = [labelled(item, target, target.dtype, weight) for item, target, weight in rows]
        return Encoded(items)


class Classification(_TextTask):
    """One of C labels for a text or a pair of texts."""

    problem_type = "single_label_classification"

    def targets(self, examples):
        """(N,) int32, the number of each example's label."""
        numbers = label_numbers(self.label_names)
        return np.array([numbers[example.label] for example in examples], np.int32)

    def losses(self, outputs, labels):
        return _choice_losses(outputs["logits"], labels)

    def predictions(self, examples, encoded, outputs):
        predictions = []
        for output in outputs:
            shares = softmax(output["logits"])
            best = int(shares.argmax())
            by_name = dict(zip(self.label_names, map(float, shares), strict=True))
            predictions.append(
                {"label": self.label_names[best], "score": float(shares[best]), "scores": by_name}
            )
        return predictions

    def predicted_numbers(self, predictions):
        """(N,) int, the number of each predicted label."""
        return np.array([self.label_names.index(prediction["label"]) for prediction in predictions])

    def scores(self, examples, predictions):
        return metrics.classification_scores(
            self.targets(examples), self.predicted_numbers(predictions), len(self.label_names)
        )

    def report(self, examples, predictions):
        return metrics.classification_report_text(
            self.targets(examples), self.predicted_numbers(predictions), self.label_names
        )


class Regression(_TextTask):
    """A number for a text or a pair of texts, by least squares."""

    metric = "spearman"
    problem_type = "regression"

    def targets(self, examples):
        """(N,) float32."""
        return np.array([example.label for example in examples], np.float32)

    def losses(self, outputs, labels):
        losses = tf.square(outputs["logits"][:, 0] - labels)
        return losses, tf.zeros_like(losses)

    def soft_losses(self, outputs, teacher_outputs, temperature):
        """The squared difference; a number cannot be softened."""
        return tf.square(outputs["logits"][:, 0] - teacher_outputs["logits"][:, 0])

    def predictions(self, examples, encoded, outputs):
        return [{"score": float(output["logits"][0])} for output in outputs]

    def scores(self, examples, predictions):
        return metrics.regression_scores(
            np.array([example.label for example in examples]),
            np.array([prediction["score"] for prediction in predictions]),
        )


class MultiLabel(_TextTask):
    """Any number of C labels for a text: those with a probability above 1/2."""

    metric = "f1_micro"
    problem_type = "multi_label_classification"

    def targets(self, examples):
        """(N, C) float32, 1 for the labels that each example has."""
        numbers = label_numbers(self.label_names)
        targets = np.zeros((len(examples), len(self.label_names)), np.float32)
        for row, example in zip(targets, examples, strict=True):
            row[[numbers[name] for name in example.label]] = 1
        return targets

    def losses(self, outputs, labels):
        logits = outputs["logits"]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)  # (B, C)
        right = tf.reduce_all((logits > 0) == (labels > 0.5), axis=1)
        return tf.reduce_mean(losses, axis=1), tf.cast(right, tf.float32)

    def soft_losses(self, outputs, teacher_outputs, temperature):
        """The mean over the labels, each of which is there or not."""
        both = [
            tf.stack([x["logits"], tf.zeros_like(x["logits"])], -1)
            for x in (outputs, teacher_outputs)
        ]
        return tf.reduce_mean(soft_losses(*both, temperature), axis=1)

    def predictions(self, examples, encoded, outputs):
        predictions = []
        for output in outputs:
            shares = 1 / (1 + np.exp(-output["logits"].astype(np.float64)))
            names = [
                name
                for name, logit in zip(self.label_names, output["logits"], strict=True)
                if logit > 0
            ]
            by_name = dict(zip(self.label_names, map(float, shares), strict=True))
            predictions.append({"labels": names, "scores": by_name})
        return predictions

    def scores(self, examples, predictions):
        predicted = [
            [name in prediction["labels"] for name in self.label_names]
            for prediction in predictions
        ]
        return metrics.multilabel_scores(self.targets(examples) > 0, np.array(predicted))


class Choice(Task):
    """One of several texts; each is the second segment of a sequence of its own."""

    model_class = BertForMultipleChoice

    def config_fields(self):
        return {}

    def encode(self, examples, class_weights=None):
        texts = [example.text for example in examples for _ in example.choices]
        choices = [choice for example in examples for choice in example.choices]
        rows = iter(text_items(self.tokenizer, texts, choices, self.max_seq_length))
        items = []
        for example in examples:
            mine = [next(rows) for _ in example.choices]
            item = EncodedExample(
                _stacked([item.input_ids for item in mine], self.tokenizer.pad_id),
                _stacked([item.token_type_ids for item in mine], 0),
            )
            items.append(item if example.label is None else labelled(item, example.label, np.int32))
        return Encoded(items)

    def losses(self, outputs, labels):
        return _choice_losses(outputs["logits"], labels)

    def predictions(self, examples, encoded, outputs):
        predictions = []
        for example, output in zip(examples, outputs, strict=True):
            shares = softmax(output["logits"])
            best = int(shares.argmax())
            predictions.append(
                {"choice": best, "text": example.choices[best], "score": float(shares[best])}
            )
        return predictions

    def scores(self, examples, predictions):
        right = [e.label == p["choice"] for e, p in zip(examples, predictions, strict=True)]
        return {"accuracy": float(np.mean(right))}


def _choice_losses(logits, labels):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    right = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
    return losses, tf.cast(right, tf.float32)


def _stacked(arrays, value):
    """(C, L) array of rows of different lengths, filled up with `value`."""
    width = max(len(array) for array in arrays)
    return np.stack([np.pad(a, (0, width - len(a)), constant_values=value) for a in arrays])
