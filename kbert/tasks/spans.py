"""The tasks that find stretches of a text: tags of words, and answers to questions."""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import EncodedExample
from kbert.errors import UserError
from kbert.model.models import BertForQuestionAnswering, BertForTokenClassification
from kbert.tasks import metrics
from kbert.tasks.answers import answer_positions, best_answers, best_null_threshold
from kbert.tasks.labels import label_numbers
from kbert.tasks.span_ops import (
    question_windows,
    tagged_spans,
    text_windows,
    tokenize_questions,
)
from kbert.tasks.squad import squad_scores
from kbert.tasks.tasks import Encoded, Task, encoded_rows, labelled, soft_losses, softmax
from kbert.tokenizer.vocab import CONTINUATION

_WORDS = 50_000  # tokenized at once
_TEXTS, _QUESTIONS = 256, 64  # cut into windows at once


@dataclasses.dataclass(frozen=True, slots=True)
class _Words:
    """Where the words of a sentence begin in its item; 0 for those that were cut off."""

    places: np.ndarray


class Tagging(Task):
    """A tag for each word: entities in IOB2, parts of speech.

    The tag of a word is that of its first piece. A word that BERT's tokenizer cuts further, such as
    "U.S.", is learnt as several words with the same tag (B-X first, then I-X), so that text that
    nobody cut into words can be tagged, too.
    """

    model_class = BertForTokenClassification

    def __init__(self, tokenizer, label_names=None, max_seq_length=128):
        super().__init__(tokenizer, label_names, max_seq_length)
        self._starts_word = np.array([not w.startswith(CONTINUATION) for w in tokenizer.vocab])
        if label_names and any(name.startswith(("B-", "I-")) for name in label_names):
            self.metric = "entity_f1"

    def encode(self, examples, class_weights=None):
        rows = self._pieces([word for example in examples for word in example.words])
        items, places = [], []
        for example in examples:
            mine = [next(rows) for _ in example.words]
            item, begins = self._item(mine)
            if example.tags is not None:
                item = labelled(item, *self._targets(item, begins, example.tags))
            items.append(item)
            places.append(_Words(begins))
        return Encoded(items, places)

    def _pieces(self, words):
        """Iterator of the ids of each word; a word of which nothing is left is [UNK]."""
        for begin in range(0, len(words), _WORDS):
            ragged = self.tokenizer.tokenize(words[begin : begin + _WORDS])
            ids, splits = ragged.flat_values.numpy(), ragged.row_splits.numpy()
            for first, last in itertools.pairwise(splits):
                yield (
                    ids[first:last] if last > first else np.array([self.tokenizer.unk_id], np.int32)
                )

    def _item(self, words):
        """An item of the ids of words, and where each begins in it."""
        room = self.max_seq_length - 2
        lengths = np.array([len(word) for word in words])
        begins = np.cumsum(lengths) - lengths + 1
        ids = np.concatenate([[self.tokenizer.cls_id], np.concatenate(words)[:room]])
        ids = np.append(ids, self.tokenizer.sep_id).astype(np.int32)
        return EncodedExample(ids, np.zeros_like(ids)), np.where(begins <= room, begins, 0)

    def _targets(self, item, begins, tags):
        """Labels, dtype and weights of an item's tokens."""
        numbers = label_numbers(self.label_names)
        labels, weights = np.zeros(item.length, np.int32), np.zeros(item.length, np.float32)
        ends = [*begins[1:], item.length - 1]
        for begin, end, tag in zip(begins, ends, tags, strict=True):
            if not begin:
                break
            end = end or item.length - 1
            inside = f"I-{tag[2:]}" if tag.startswith("B-") else tag
            labels[begin:end] = numbers.get(inside, numbers[tag])
            labels[begin] = numbers[tag]
            weights[begin:end] = self._starts_word[item.input_ids[begin:end]]
            weights[begin] = 1
        return labels, np.int32, weights

    def losses(self, outputs, labels):
        logits = outputs["logits"]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        right = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
        return losses, tf.cast(right, tf.float32)

    def predictions(self, examples, encoded, outputs):
        rest = "O" if "O" in self.label_names else self.label_names[0]
        predictions = []
        for example, words, output in zip(examples, encoded.windows, outputs, strict=True):
            best = output["logits"].argmax(axis=-1)
            tags = [self.label_names[best[place]] if place else rest for place in words.places]
            predictions.append({"words": list(example.words), "tags": tags})
        return predictions

    def scores(self, examples, predictions):
        return metrics.entity_scores(*_tags(examples, predictions))

    def report(self, examples, predictions):
        return metrics.entity_report_text(*_tags(examples, predictions))

    def text_windows(self, texts):
        """Items of texts as they are, long ones in windows that overlap by half.

        Args:
            texts: list of str.

        Returns:
            Encoded; `windows` are those of `_TEXTS` texts after the other.
        """
        items, parts = [], []
        for begin in range(0, len(texts), _TEXTS):
            part = texts[begin : begin + _TEXTS]
            windows = text_windows(part, self.tokenizer, self.max_seq_length)
            items += encoded_rows(windows.features)
            parts.append(dataclasses.replace(windows, features=None))
        return Encoded(items, parts)

    def spans(self, texts, encoded, outputs):
        """What is found in texts: see `kbert.Predictor.tag`. Arguments: of `text_windows`."""
        results, outputs = [], iter(outputs)
        for begin, windows in zip(range(0, len(texts), _TEXTS), encoded.windows, strict=True):
            logits = windows.padded(outputs, ["logits"])["logits"]
            part = texts[begin : begin + _TEXTS]
            spans = tagged_spans(part, windows, softmax(logits), self.label_names, self.tokenizer)
            columns = {name: column.numpy().tolist() for name, column in spans.items()}
            for row, count in enumerate(columns.pop("count")):
                values = zip(*(column[row][:count] for column in columns.values()), strict=True)
                results.append([_span(dict(zip(columns, v, strict=True))) for v in values])
        return results


def _span(values):
    """A span of `tagged_spans` with str for bytes."""
    return values | {name: values[name].decode("utf-8", "replace") for name in ("label", "text")}


class QuestionAnswering(Task):
    """The stretch of a context that answers a question, or none.

    Args:
        tokenizer, max_seq_length: as for `Task`.
        doc_stride, max_query_length: of `kbert.tasks.span_ops`.
        max_answer_length, allow_no_answer, null_threshold: of `kbert.tasks.answers.best_answers`.
    """

    model_class = BertForQuestionAnswering
    metric = "f1"

    def __init__(
        self,
        tokenizer,
        max_seq_length=384,
        doc_stride=128,
        max_query_length=64,
        max_answer_length=30,
        allow_no_answer=False,
        null_threshold=0.0,
    ):
        super().__init__(tokenizer, None, max_seq_length)
        self.doc_stride = doc_stride
        self.max_query_length = max_query_length
        self.max_answer_length = max_answer_length
        self.allow_no_answer = allow_no_answer
        self.null_threshold = null_threshold

    def config_fields(self):
        return {}

    def encode(self, examples, class_weights=None):
        """Raises UserError: a setting is out of range, or a question leaves no room."""
        for name in ("doc_stride", "max_query_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}.")
        items, parts = [], []
        for begin in range(0, len(examples), _QUESTIONS):
            part = examples[begin : begin + _QUESTIONS]
            windows = self._windows(part)
            rows = encoded_rows(windows.features)
            items += [
                item if answer is None else labelled(item, answer, np.int32)
                for item, answer in zip(rows, answer_positions(part, windows), strict=True)
            ]
            parts.append(dataclasses.replace(windows, features=None))
        return Encoded(items, parts)

    def _windows(self, examples):
        questions, columns = tokenize_questions(
            [example.question for example in examples],
            [example.context for example in examples],
            self.tokenizer,
            self.max_query_length,
        )
        for example, length in zip(examples, questions.row_lengths().numpy(), strict=True):
            if length + 4 > self.max_seq_length:
                raise UserError(
                    f"{example.where}: the question has {length} tokens, which leaves no room for "
                    f"the context; max_seq_length must be at least {length + 4}, got "
                    f"{self.max_seq_length}. Raise it, or lower max_query_length."
                )
        return question_windows(
            questions, columns, self.tokenizer, self.max_seq_length, self.doc_stride
        )

    def losses(self, outputs, labels):
        losses, right = 0.0, True
        for i, name in enumerate(("start_logits", "end_logits")):
            logits = outputs[name]
            losses += tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels=labels[:, i], logits=logits
            )
            right &= tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels[:, i]
        return losses / 2, tf.cast(right, tf.float32)

    def soft_losses(self, outputs, teacher_outputs, temperature):
        """The mean of start and end."""
        names = ("start_logits", "end_logits")
        return (
            sum(soft_losses(outputs[name], teacher_outputs[name], temperature) for name in names)
            / 2
        )

    def pick(self, outputs, features):
        return {name: outputs[name] for name in ("start_logits", "end_logits")}

    def predictions(self, examples, encoded, outputs):
        return best_answers(
            examples,
            encoded.windows,
            outputs,
            max_answer_length=self.max_answer_length,
            allow_no_answer=self.allow_no_answer,
            null_threshold=self.null_threshold,
        )

    def find_threshold(self, examples, predictions):
        """Predicts "no answer" from now on where that is best for these examples."""
        self.null_threshold, _ = best_null_threshold(examples, predictions)

    def scores(self, examples, predictions):
        answers = {
            e.id: prediction["text"] for e, prediction in zip(examples, predictions, strict=True)
        }
        scores = squad_scores(examples, answers)
        return scores | ({"null_threshold": self.null_threshold} if self.allow_no_answer else {})


def _tags(examples, predictions):
    return [e.tags for e in examples], [prediction["tags"] for prediction in predictions]
