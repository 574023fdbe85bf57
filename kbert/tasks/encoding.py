"""Encoded examples without padding, with or without labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import EncodedExample

if TYPE_CHECKING:
    from kbert.data.examples import ChoiceExample
    from kbert.tokenizer.tokenizer import BertTokenizer

_TEXTS = 1024  # texts to tokenize at once


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Encoded examples.

    Attributes:
        items: list of EncodedExample, one or more per example.
        windows: list that maps the tokens of the items to the texts: of TokenWindows (qa, and tag
            for plain text), or of the position of each word's first token (tag for words); None for
            other tasks.
    """

    items: list[EncodedExample]
    windows: list[Any] | None = None


def encode_texts(
    tokenizer: "BertTokenizer",
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    max_seq_length: int,
) -> list[EncodedExample]:
    """Encodes texts, or pairs if `text_pairs` is set, truncated to `max_seq_length` tokens."""
    items = []
    for begin in range(0, len(texts), _TEXTS):
        part = slice(begin, begin + _TEXTS)
        pairs = text_pairs and text_pairs[part]
        items += unpad_batch(tokenizer(texts[part], pairs, max_seq_length, "longest"))
    return items


def unpad_batch(features: Mapping[str, tf.Tensor]) -> list[EncodedExample]:
    """Converts features, (B, L) each, to a list of B EncodedExamples without padding or labels."""
    lengths = tf.reduce_sum(features["attention_mask"], axis=1).numpy()
    ids, types = features["input_ids"].numpy(), features["token_type_ids"].numpy()
    return [
        EncodedExample(ids[row, :length].copy(), types[row, :length].copy())
        for row, length in enumerate(lengths)
    ]


def stack_items(items: Sequence[EncodedExample], pad_id: int) -> EncodedExample:
    """Stacks T items to one, (T, L), for an example with T texts; pads them to the longest."""
    length = max(item.length for item in items)

    def stack(name, value):
        rows = [getattr(item, name) for item in items]
        return np.stack(
            [np.pad(row, (0, length - len(row)), constant_values=value) for row in rows]
        )

    return EncodedExample(stack("input_ids", pad_id), stack("token_type_ids", 0))


def encode_choices(
    tokenizer: "BertTokenizer", examples: "Sequence[ChoiceExample]", max_seq_length: int
) -> list[EncodedExample]:
    """Encodes each text with each of its C choices: an item (C, L) per example."""
    texts = [example.text for example in examples for _ in example.choices]
    choices = [choice for example in examples for choice in example.choices]
    rows = iter(encode_texts(tokenizer, texts, choices, max_seq_length))
    items = []
    for example in examples:
        item = stack_items([next(rows) for _ in example.choices], tokenizer.pad_id)
        items.append(item if example.label is None else with_labels(item, example.label, np.int32))
    return items


def with_labels(
    item: EncodedExample,
    labels: "np.typing.ArrayLike",
    dtype: "np.typing.DTypeLike",
    weights: "np.typing.ArrayLike" = 1.0,
) -> EncodedExample:
    """Returns a copy of an item with `labels` of the given dtype, and their loss weights."""
    return dataclasses.replace(
        item,
        labels=np.asarray(labels, dtype),
        label_weights=np.asarray(weights, np.float32),
    )
