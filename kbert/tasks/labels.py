"""Names of labels, from the data or the user, and checks of examples against them."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from kbert.errors import UserError, one_line

if TYPE_CHECKING:
    from typing import Any, TypeVar

    from kbert.config import BertConfig
    from kbert.data.examples import TagExample, TextExample
    from kbert.tasks.task import Task

    Example = TypeVar("Example", TextExample, TagExample)


def _labels_of(example):
    """The names of the labels of an example."""
    if hasattr(example, "tags"):
        return example.tags
    return example.label if isinstance(example.label, tuple) else (example.label,)


def _sort_key(name):
    return (0, int(name), "") if re.fullmatch(r"-?[0-9]{1,99}", name) else (1, 0, name)


def label_names(examples: "Iterable[TextExample | TagExample]") -> tuple[str, ...]:
    """Returns the names of all labels in examples, sorted: first numbers by value, then text."""
    return tuple(
        sorted({name for example in examples for name in _labels_of(example)}, key=_sort_key)
    )


def label_numbers(names: Sequence[str]) -> dict[str, int]:
    """Returns a dict of name -> number; unless a name is a number, "0", "1", ... are names, too."""
    numbers = {name: i for i, name in enumerate(names)}
    if not any(re.fullmatch(r"[0-9]+", name) for name in names):
        numbers |= {str(i): i for i in range(len(names))}
    return numbers


def keep_known(
    examples: "Sequence[Example]",
    names: Sequence[str],
    skip_bad_lines: bool,
    report: Callable[[str], None],
) -> "list[Example]":
    """Returns the examples whose labels are all in `names`.

    Args:
        examples: list of labeled examples. names: tuple of str.
        skip_bad_lines: whether to skip other examples instead of raising.
        report: called with a line that reports the number of skipped examples.

    Raises:
        UserError: a label is unknown (with file and line), or all examples were skipped.
    """
    numbers = label_numbers(names)
    kept, first = [], None
    for example in examples:
        unknown = next((name for name in _labels_of(example) if name not in numbers), None)
        if unknown is None:
            kept.append(example)
            continue
        message = (
            f"{example.where}: the label {unknown!r} is not one of the {len(names)} labels: "
            f"{shown(names)}."
        )
        if not skip_bad_lines:
            raise UserError(f"{message} Fix it, or skip such lines with --skip_bad_lines.")
        first = first or message
    if not kept:
        raise UserError(f"no example has a known label; {first}")
    if first:
        left = len(examples) - len(kept)
        line = f"note: {left:,} of {len(examples):,} examples are skipped; the first: {first}"
        report(one_line(line))
    return kept


def differing_labels(config: "BertConfig", task: "Task") -> "dict[str, tuple[Any, Any]]":
    """Returns the fields of a BertConfig that contradict a Task: name -> (its value, the task's).

    None in the config does not contradict the task.
    """
    pairs = {name: (getattr(config, name), value) for name, value in task.config_fields().items()}
    return {name: pair for name, pair in pairs.items() if pair[0] not in (None, pair[1])}


def check_all_present(
    examples: "Iterable[TextExample | TagExample]", names: Sequence[str], what: str
) -> None:
    """Raises UserError if a label has no example, since the model could not learn it."""
    numbers = label_numbers(names)
    seen = {numbers[name] for example in examples for name in _labels_of(example)}
    missing = [name for i, name in enumerate(names) if i not in seen]
    if missing:
        raise UserError(
            f"{what} has no example of {shown(missing)}, so the model cannot learn it. Add "
            f"examples, or remove the name from --label_names."
        )


def shown(names: Iterable[str]) -> str:
    """Returns names as text, at most the first 20."""
    names = list(names)
    return ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
