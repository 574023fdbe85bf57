"""The task tag: a label for each word of a text."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import EncodedExample
from kbert.data.columns import count_text, find_column
from kbert.data.conll import read_conll
from kbert.data.examples import TagExample, open_records, parse_tag_example, source_format
from kbert.data.tag_schemes import TagScheme, tag_scheme, to_iob2
from kbert.errors import UserError
from kbert.model.models import BertForTokenClassification
from kbert.tasks import metrics
from kbert.tasks.encoding import Encoded, unpad_batch, with_labels
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.labels import join_names, label_numbers
from kbert.tasks.outputs import Outputs, Predictions, TensorDict, softmax
from kbert.tasks.span_ops import TokenWindows, characters_before, tagged_spans, text_windows
from kbert.tasks.task import Task
from kbert.tokenizer.vocab import CONTINUATION

if TYPE_CHECKING:
    from kbert.data.records import Record, Records
    from kbert.inference.predictor import Predictor
    from kbert.settings.tasks import ColumnConfig
    from kbert.tokenizer.tokenizer import BertTokenizer

_WORD_KEYS = ("words", "tokens", "text", "sentence")  # in the order in which they are tried
_TAG_KEYS = ("tags", "ner_tags", "labels", "ner", "tag", "label", "ner_labels", "bio", "pos_tags")
_WORDS = 50_000  # words to tokenize at once
_TEXTS = 256  # texts to split into windows at once


class TagEndpoint(Endpoint):
    """Finds the entities of a text, or the tag of every word."""

    name = "tag"
    scored_by_ids = True
    forward_spec: dict[str, tuple[str, str]] = {
        "logits": ("BLC", "one per token and label; the softmax gives the probabilities")
    }
    output_spec: dict[str, str] = {
        "label": "(B, S) string, the labels of the spans, in text order; padded with empty strings",
        "text": "(B, S) string, the texts of the spans; padded with empty strings",
        "start": "(B, S) int32, byte offset of each span in the UTF-8 text; padded with -1",
        "end": "(B, S) int32, byte offset of the end of each span, exclusive; padded with -1",
        "score": "(B, S) float32, mean probability of the labels of a span's words; padded with 0",
        "count": "(B,) int32, the number of spans",
    }
    padded: dict[str, str | int | float] = {
        "start": -1,
        "label": "",
        "text": "",
        "end": -1,
        "score": 0.0,
    }

    token_outputs: tuple[str, ...] = ("probabilities",)

    def encode_texts(self, text: tf.Tensor) -> tuple[TensorDict, TensorDict]:
        windows = text_windows(text, self.tokenizer, self.max_seq_length, self.limits)
        return windows.features, windows.tensors()

    def decode(self, texts: TensorDict, extra: TensorDict, outputs: TensorDict) -> TensorDict:
        windows, probabilities = TokenWindows.from_tensors(extra), outputs["probabilities"]
        return tagged_spans(texts["text"], windows, probabilities, self.task.roles, self.tokenizer)

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        return {"probabilities": tf.nn.softmax(outputs["logits"])}


class Tagging(Task):
    """The task of predicting the tag of each word.

    The tags mark entities in a scheme of `kbert.data.tag_schemes`, or are any other labels. The tag
    of a word is predicted at its first WordPiece. A word that BERT's tokenizer splits at
    punctuation, such as "U.S.", is trained as several words with the same tag (B-X first, then
    I-X), so that the model can also tag plain text, which is not split into words.

    Attributes:
        scheme: TagScheme of the label names; None if they mark no entities.
        roles: list of (role, type), one per label, as in `TagScheme.roles`; without a scheme, ("S",
            label name).
    """

    name = "tag"
    method: str | None = "tag"
    model_class = BertForTokenClassification
    endpoint: type[Endpoint] | None = TagEndpoint
    min_labels = 2
    unlabeled_task: str | None = "classify"

    @classmethod
    def reader(
        cls, source: str, config: "ColumnConfig", labeled: bool
    ) -> "tuple[Records, Callable[[str, Record], TagExample]]":
        if source_format(source) == "csv":
            raise UserError(
                f"{source} is a comma-separated table. Convert it to a file with one word per "
                f"line, columns separated by tabs or spaces, and an empty line between sentences, "
                f"or to JSON lines with lists of words and tags."
            )
        if source_format(source) in ("tfds", "arrow", "json", "jsonl", "ndjson"):
            records = open_records(source, cls.name, allow_tables=False)
            find = functools.partial(find_column, records)
            words = find("text_column", config.text_column, _WORD_KEYS)
            keys = words, find("label_column", config.label_column, _TAG_KEYS) if labeled else None
        else:
            records = read_conll(source, os.path.basename(source), config, labeled)
            keys = "words", "tags" if labeled else None
        return records, functools.partial(parse_tag_example, *keys)

    @classmethod
    def standardize_examples(
        cls, examples: list[TagExample], note: Callable[[str], object]
    ) -> list[TagExample]:
        tags, scheme = to_iob2([example.tags for example in examples])
        note(_scheme_note({tag for row in tags for tag in row}, scheme))
        pairs = zip(examples, tags, strict=True)
        return [dataclasses.replace(example, tags=new) for example, new in pairs]

    @classmethod
    def examples(cls, sentences: Sequence[Sequence[str]]) -> list[TagExample]:
        return [TagExample("", tuple(words)) for words in sentences]

    def predict(self, predictor: "Predictor", texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        encoded = self.text_windows(texts)
        return self.spans(texts, encoded, predictor.outputs(self, encoded.items, len(texts)))

    @staticmethod
    def to_endpoint_output(prediction: list[dict[str, Any]]) -> dict[str, Any]:
        keys = {name: name for name in TagEndpoint.padded}
        keys |= {"start": "byte_start", "end": "byte_end"}
        columns = {name: [span[key] for span in prediction] for name, key in keys.items()}
        return columns | {"count": len(prediction)}

    @staticmethod
    def to_json(result: list[dict[str, Any]]) -> dict[str, Any]:
        return {"spans": result}

    def __init__(
        self,
        tokenizer: "BertTokenizer",
        label_names: tuple[str, ...] | None = None,
        max_seq_length: int = 128,
    ):
        super().__init__(tokenizer, label_names, max_seq_length)
        self._starts_word = np.array([not w.startswith(CONTINUATION) for w in tokenizer.vocab])
        names = label_names or ()
        self.scheme: TagScheme | None = tag_scheme(names)
        self.roles: list[tuple[str, str]] = [("S", name) for name in names]
        if self.scheme:
            self.metric = "entity_f1"
            self.roles = [self.scheme.roles.get(name, ("O", "")) for name in names]

    def encode(
        self, examples: Sequence[TagExample], class_weights: np.ndarray | None = None
    ) -> Encoded:
        rows = self._pieces([word for example in examples for word in example.words])
        items, words = [], []  # words: for each example, the position of each word's first token
        for example in examples:
            item, begins = self._item([next(rows) for _ in example.words])
            if example.tags is not None:
                item = with_labels(item, *self._targets(item, begins, example.tags))
            items.append(item)
            words.append(begins)
        return Encoded(items, words)

    def _pieces(self, words):
        """Yields the WordPiece ids of each word; [UNK] for a word without WordPieces."""
        for begin in range(0, len(words), _WORDS):
            ragged = self.tokenizer.tokenize(words[begin : begin + _WORDS])
            ids, splits = ragged.flat_values.numpy(), ragged.row_splits.numpy()
            for first, last in itertools.pairwise(splits):
                yield ids[first:last] if last > first else [self.tokenizer.unk_id]

    def _item(self, words):
        """Returns an item, and the position of each word's first WordPiece; 0 if truncated.

        Args:
            words: the WordPiece ids of each word.
        """
        room = self.max_seq_length - 2
        lengths = np.array([len(word) for word in words])
        begins = np.cumsum(lengths) - lengths + 1
        ids = np.concatenate([[self.tokenizer.cls_id], np.concatenate(words)[:room]])
        ids = np.append(ids, self.tokenizer.sep_id).astype(np.int32)
        return EncodedExample(ids, np.zeros_like(ids)), np.where(begins <= room, begins, 0)

    def _targets(self, item, begins, tags):
        """Returns labels, dtype and weights of an item's tokens, for `with_labels`."""
        numbers = label_numbers(self.label_names)
        unknown = len(numbers)  # for labels that the model does not have, in evaluation
        labels, weights = np.zeros(item.length, np.int32), np.zeros(item.length, np.float32)
        ends = [*begins[1:], item.length - 1]
        for begin, end, tag in zip(begins, ends, tags, strict=True):
            if not begin:
                break
            end = end or item.length - 1
            weights[begin:end] = self._starts_word[item.input_ids[begin:end]]
            weights[begin] = 1
            places = begin + np.flatnonzero(weights[begin:end])
            parts = self.scheme.split(tag, len(places)) if self.scheme else [tag] * len(places)
            labels[places] = [numbers.get(part, unknown) for part in parts]
        return labels, np.int32, weights

    def predictions(
        self, examples: Sequence[TagExample], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        rest = self.scheme.outside if self.scheme else self.label_names[0]
        predictions = []
        for example, begins, output in zip(examples, encoded.windows, outputs, strict=True):
            best = output["logits"].argmax(axis=-1)
            tags = [self.label_names[best[place]] if place else rest for place in begins]
            predictions.append({"words": list(example.words), "tags": tags})
        return predictions

    def scores(self, examples: Sequence[TagExample], predictions: Predictions) -> dict[str, Any]:
        return metrics.entity_scores(*_tags(examples, predictions), self.label_names)

    def report(self, examples: Sequence[TagExample], predictions: Predictions) -> str:
        return metrics.entity_report_text(*_tags(examples, predictions), self.label_names)

    def text_windows(self, texts: Sequence[str]) -> Encoded:
        """Encodes plain texts; long texts are split into windows that overlap by half.

        In the result, `windows` is a list of TokenWindows, one for every 256 texts.
        """
        items, parts = [], []
        for begin in range(0, len(texts), _TEXTS):
            part = texts[begin : begin + _TEXTS]
            windows = text_windows(part, self.tokenizer, self.max_seq_length)
            items += unpad_batch(windows.features)
            parts.append(dataclasses.replace(windows, features=None))
        return Encoded(items, parts)

    def spans(
        self, texts: Sequence[str], encoded: Encoded, outputs: Outputs
    ) -> list[list[dict[str, Any]]]:
        """Returns the spans of texts; see `kbert.Predictor.tag`.

        Args:
            texts: list of str.
            encoded: result of `text_windows` for the texts.
            outputs: results of a BatchRunner for `encoded.items`, in order.
        """
        results, outputs = [], iter(outputs)
        for begin, windows in zip(range(0, len(texts), _TEXTS), encoded.windows, strict=True):
            logits = windows.padded(outputs, ["logits"])["logits"]
            part = texts[begin : begin + _TEXTS]
            spans = tagged_spans(part, windows, softmax(logits), self.roles, self.tokenizer)
            columns = {name: column.numpy() for name, column in spans.items()}
            for row, (text, number) in enumerate(zip(part, columns.pop("count"), strict=True)):
                names = "label", "start", "end", "score"
                results.append(_spans_of(text, *(columns[n][row][:number].tolist() for n in names)))
        return results


def _spans_of(text, *columns):
    """Returns a dict for each span of a text.

    Args:
        *columns: labels (bytes), byte starts, byte ends and scores, a value of each per span.
    """
    places = characters_before(text.encode()).tolist()
    spans = []
    for label, byte_start, byte_end, score in zip(*columns, strict=True):
        start, end = places[byte_start], places[byte_end]
        span = {"label": label.decode(), "text": text[start:end], "start": start, "end": end}
        spans.append(span | {"byte_start": byte_start, "byte_end": byte_end, "score": score})
    return spans


def _scheme_note(tags, scheme):
    if scheme:
        types = sorted({type for _, type in scheme.roles.values()})
        return f"the tags mark entities in {scheme.name}; types: {join_names(types) or 'none'}"
    if all(tag.isdecimal() for tag in tags):
        return (
            f"the tags are ids, {min(map(int, tags))} to {max(map(int, tags))}, of the labels in "
            f"--label_names or in the model; without names, each word is scored"
        )
    return f"the {count_text(len(tags), 'tag')} mark no entities; each word is scored"


def _tags(examples, predictions):
    return [e.tags for e in examples], [prediction["tags"] for prediction in predictions]
