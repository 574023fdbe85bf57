"""Describes a run's examples before training: labels, lengths and the first two examples."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.errors import one_line

if TYPE_CHECKING:
    from kbert.tasks.encoding import Encoded
    from kbert.tasks.task import Task

_NUM_SHOWN = 2  # number of examples to print
_MAX_FIELD_LENGTH = 160  # maximum characters of a field
_NO_LIMIT = 2**20  # tokens; no example is longer
_ENCODE_BATCH_SIZE = 32  # of untruncated examples, which are padded to the longest


def data_lines(task: "Task", examples: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yields lines with the labels of each split, the first two training examples, and notes."""
    for name, rows in examples.items():
        if text := task.label_summary(rows):
            yield f"{name} labels: {text}"
    for number, example in enumerate(examples["train"][:_NUM_SHOWN], 1):
        yield f"example {number}, {example.where}:"
        for field, value in _fields(example):
            yield f"  {field}: {one_line(value, _MAX_FIELD_LENGTH)}"
    for name, rows in examples.items():
        yield from (f"note: {name}: {line}" for line in task.data_warnings(rows))


def truncation_notes(lengths: Mapping[str, np.ndarray], max_seq_length: int) -> Iterator[str]:
    """Yields a line for each split with examples that exceed the maximum length.

    `lengths` is a dict of the name of a split -> result of `token_lengths`.
    """
    for name, tokens in lengths.items():
        long = np.count_nonzero(tokens > max_seq_length)
        if long:
            yield (
                f"note: {name}: {long:,} of {len(tokens):,} examples ({long / len(tokens):.1%}) "
                f"exceed --max_seq_length={max_seq_length} tokens and will be truncated; the "
                f"longest has {tokens.max():,} tokens"
            )


def length_lines(lengths: Mapping[str, np.ndarray], max_seq_length: int) -> Iterator[str]:
    """Yields a line with percentiles of the lengths of each split; see `truncation_notes`."""
    for name, tokens in lengths.items():
        shares = (50, 90, 95, 99)
        lengths = np.percentile(tokens, shares, method="higher")
        shown = [f"{n:,} ({share} %)" for n, share in zip(lengths, shares, strict=True)]
        yield (
            f"{name} lengths in tokens: up to {', '.join(shown)}, {tokens.max():,} (all); "
            f"{np.mean(tokens > max_seq_length):.1%} are longer than --max_seq_length="
            f"{max_seq_length}"
        )


def token_lengths(task: "Task", examples: Sequence[Any], encoded: "Encoded") -> np.ndarray:
    """Returns the lengths of N examples in tokens before truncation, (N,) int.

    `encoded` is the result of `task.encode` for the examples.
    """
    lengths = np.array([item.length for item in encoded.items])
    long = np.flatnonzero(lengths == task.max_seq_length)
    if task.splits_into_windows:  # an item is a window
        lengths, long = np.zeros(len(examples), int), np.arange(len(examples))
    untruncated = copy.copy(task)
    untruncated.max_seq_length = _NO_LIMIT
    for begin in range(0, len(long), _ENCODE_BATCH_SIZE):
        part = long[begin : begin + _ENCODE_BATCH_SIZE]
        items = untruncated.encode([examples[i] for i in part]).items
        lengths[part] = [item.length for item in items]
    return lengths


def _fields(example):
    """Returns (name, value) of an example's fields, without `where` and fields that are None."""
    if not dataclasses.is_dataclass(example):
        return [("value", example)]
    fields = dataclasses.asdict(example)
    return [(n, v) for n, v in fields.items() if n != "where" and v is not None]
