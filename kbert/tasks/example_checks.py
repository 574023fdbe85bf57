"""Warnings about examples that are valid but probably contain a mistake."""

import collections
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kbert.data.columns import count_text
from kbert.data.examples import TextExample
from kbert.data.records import value_text

if TYPE_CHECKING:
    from typing import TypeAlias

    Examples: TypeAlias = Sequence[Any]

_MIN_EXAMPLES = 10  # splits with fewer examples are not checked


def content_warnings(examples: "Examples", name: str) -> list[str]:
    """Returns warnings about the texts and labels of a split, one line each.

    Args:
        examples: labeled examples; only TextExamples are checked.
        name: name of the source in the warnings.
    """
    if len(examples) < _MIN_EXAMPLES or not isinstance(examples[0], TextExample):
        return []
    lines = []
    texts = {example.text for example in examples}
    if len(texts) == len(examples) and all(re.fullmatch(r"\S*\d\S*", text) for text in texts):
        lines.append(
            f"warning: the texts of {name} look like identifiers, such as "
            f"{value_text(examples[0].text)}. Check --text_column."
        )
    labels = collections.Counter(example.label for example in examples)
    if isinstance(examples[0].label, float):
        return lines
    if 2 * len(labels) > len(examples):
        lines.append(
            f"warning: {name} has {count_text(len(labels), 'label')} in {len(examples):,} "
            f"examples. Check --label_column."
        )
    elif labels.pop(examples[0].label) == 1 and min(labels.values()) > 1:
        lines.append(
            f"warning: the label of the first example, {value_text(examples[0].label)}, occurs "
            f"only there. If the first row is a header, set --header=yes."
        )
    return lines


def overlap_warning(train: "Examples", others: "Examples", name: str) -> str | None:
    """Returns a warning if examples of another split are in the training data, else None.

    Args:
        train: labeled training examples; only TextExamples are checked.
        others: labeled examples of the other split.
        name: name of `others` in the warning.
    """
    if not isinstance(train[0], TextExample):
        return None
    known = {(example.text, example.text_pair): example.label for example in train}
    same = [e for e in others if (e.text, e.text_pair) in known]
    if not same:
        return None
    different = sum(known[e.text, e.text_pair] != e.label for e in same)
    also = f", {different:,} of them with another label" if different else ""
    return (
        f"warning: {len(same):,} of {count_text(len(others), 'example')} of {name} are in the "
        f"training data, too{also}."
    )
