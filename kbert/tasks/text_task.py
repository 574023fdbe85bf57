"""The base class of the tasks that predict labels or a number for a text or a pair of texts."""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.data.examples import TextExample, open_records, parse_text_example
from kbert.data.text_columns import TextRoles, find_text_columns
from kbert.tasks.arguments import same_length
from kbert.tasks.encoding import Encoded, encode_texts, with_labels
from kbert.tasks.task import Task

if TYPE_CHECKING:
    from kbert.data.records import Record, Records
    from kbert.settings.tasks import ColumnConfig


class TextTask(Task):
    """Base class of classify, pair, regress and multilabel.

    Attributes:
        roles: number of texts and kind of label that the task reads from files.
    """

    method: str | None = "classify"
    texts: tuple[int, int | None] = (1, 2)
    roles: TextRoles = TextRoles()

    @staticmethod
    @abc.abstractmethod
    def label(value: object, where: str) -> str | float | tuple[str, ...]:
        """Converts a value of the label column to a label.

        Args:
            value: a table cell or a JSON value.
            where: file and line of the value, for messages.

        Raises:
            BadExample: the value is not a valid label.
        """

    @classmethod
    def reader(
        cls, source: str, config: "ColumnConfig", labeled: bool
    ) -> "tuple[Records, Callable[[str, Record], TextExample]]":
        # `find_text_columns` decides whether a table has a header.
        records = open_records(source, cls.name)
        columns = find_text_columns(records, config, labeled, cls.roles)
        return records, functools.partial(parse_text_example, columns, cls.label)

    @classmethod
    def examples(
        cls, texts: Sequence[str], text_pairs: Sequence[str] | None = None
    ) -> list[TextExample]:
        text_pairs = same_length(texts, text_pairs, "text_pairs") or [None] * len(texts)
        return [TextExample("", text, pair) for text, pair in zip(texts, text_pairs, strict=True)]

    @staticmethod
    def to_endpoint_output(prediction: dict[str, Any]) -> dict[str, Any]:
        return prediction | {"probabilities": list(prediction.get("scores", {}).values())}

    @abc.abstractmethod
    def targets(self, examples: Sequence[TextExample]) -> np.ndarray:
        """Returns the labels of N examples as an array: (N,), or (N, C) for multilabel."""

    def encode(
        self, examples: Sequence[TextExample], class_weights: np.ndarray | None = None
    ) -> Encoded:
        texts = [example.text for example in examples]
        text_pairs = [example.text_pair for example in examples]
        if text_pairs[0] is None:
            text_pairs = None
        items = encode_texts(self.tokenizer, texts, text_pairs, self.max_seq_length)
        if examples[0].label is not None:
            targets = self.targets(examples)
            weights = np.ones(len(targets)) if class_weights is None else class_weights[targets]
            rows = zip(items, targets, weights, strict=True)
            items = [
                with_labels(item, target, target.dtype, weight) for item, target, weight in rows
            ]
        return Encoded(items)
