"""Label names from the examples or from the user, and checks that examples have known labels."""

import collections
import dataclasses
import decimal
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from kbert.data.tag_schemes import convert_tags
from kbert.data.validation import normalize_label
from kbert.errors import UserError, one_line

if TYPE_CHECKING:
    from typing import Any, TypeVar

    from kbert.config import BertConfig
    from kbert.data.examples import TagExample, TextExample
    from kbert.tasks.task import Task

    Example = TypeVar("Example", TextExample, TagExample)


def _labels_of(example):
    """Returns the names of an example's labels, as a tuple."""
    if hasattr(example, "tags"):
        return example.tags
    return example.label if isinstance(example.label, tuple) else (example.label,)


def _sort_key(name):
    is_number = re.fullmatch(r"-?[0-9]{1,99}(\.[0-9]{1,99})?", name)
    return (0, decimal.Decimal(name), name) if is_number else (1, 0, name)


def label_names(examples: "Iterable[TextExample | TagExample]") -> tuple[str, ...]:
    """Returns the names of all labels in examples: numbers by value, then others by code point."""
    return tuple(
        sorted({name for example in examples for name in _labels_of(example)}, key=_sort_key)
    )


def label_numbers(names: Sequence[str]) -> dict[str, int]:
    """Returns a dict of label name -> id, which also has other forms of the names.

    These are the names as `normalize_label` returns them (in a model, the label 1 may have the name
    "1.0") and, if no name is a number, the ids as text: "0", "1", ...
    """
    numbers = {normalize_label(name): i for i, name in enumerate(names)}
    if not any(re.fullmatch(r"[0-9]+", name) for name in numbers):
        numbers |= {str(i): i for i in range(len(names))}
    return numbers | {name: i for i, name in enumerate(names)}


def all_label_names(
    examples: "Iterable[TextExample | TagExample]", names: Sequence[str]
) -> tuple[str, ...]:
    """Returns `names`, followed by the other labels that examples have, sorted."""
    numbers = label_numbers(names)
    labels = {name for example in examples for name in _labels_of(example)}
    return (*names, *sorted((name for name in labels if name not in numbers), key=_sort_key))


def all_label_numbers(
    examples: "Iterable[TextExample | TagExample]", names: Sequence[str]
) -> dict[str, int]:
    """Returns `label_numbers` of C names, and ids from C on for other labels of the examples."""
    more = enumerate(all_label_names(examples, names)[len(names) :], len(names))
    return label_numbers(names) | {name: number for number, name in more}


def label_frequencies_text(
    examples: "Sequence[TextExample | TagExample]", names: Sequence[str]
) -> str:
    """Returns the count and the percentage of each of `all_label_names`, as text.

    The percentages refer to the number of examples or, for TagExamples, of words.
    """
    numbers = label_numbers(names)
    labels = [_labels_of(example) for example in examples]
    counts = dict.fromkeys(all_label_names(examples, names), 0)
    for name in itertools.chain(*labels):
        counts[names[numbers[name]] if name in numbers else name] += 1
    if empty := sum(not row for row in labels):
        counts["no label"] = empty
    total = sum(counts.values()) if hasattr(examples[0], "tags") else len(examples)
    return join_names(f"{name} {count:,} ({count / total:.1%})" for name, count in counts.items())


def rarest_labels(examples: "Sequence[TextExample | TagExample]") -> list[str | None]:
    """Returns the rarest label of each example, or None for an example without labels."""
    rows = [sorted(set(_labels_of(example))) for example in examples]
    counts = collections.Counter(itertools.chain(*rows))
    return [min(row, key=counts.__getitem__, default=None) for row in rows]


def keep_known_labels(
    examples: "Sequence[Example]",
    names: Sequence[str],
    skip_bad_lines: bool,
    report: Callable[[str], None],
    unknown: str | None = None,
) -> "list[Example]":
    """Returns the examples whose labels are all known: a label name, or its id as text.

    Tags are converted to the tag scheme of the label names.

    Args:
        examples: labeled examples, at least one.
        names: the label names, in the order of their ids.
        skip_bad_lines: whether to skip examples with unknown labels instead of raising.
        report: called with a line about the examples with unknown labels, if there are any.
        unknown: the setting `unknown_labels`; None for training examples. With "wrong", examples
            with unknown labels are kept, whatever `skip_bad_lines` is.

    Raises:
        UserError: a label is unknown (the message names the file and the line), or all examples
            were skipped.
    """
    if hasattr(examples[0], "tags"):
        examples = convert_tags(names, examples)
    known = label_numbers(names).keys()
    is_known = [known >= set(_labels_of(example)) for example in examples]
    bad = [example for example, fits in zip(examples, is_known, strict=True) if not fits]
    if not bad:
        return list(examples)
    labels = [name for example in bad for name in _labels_of(example) if name not in known]
    counts = collections.Counter(labels).most_common()
    text = join_names(f"{name} ({count:,})" for name, count in counts)
    total = f"{len(bad):,} of {len(examples):,} examples"
    if unknown == "wrong":
        report(one_line(f"note: {total} have unknown labels and count as wrong: {text}"))
        return list(examples)
    message = (
        f"{bad[0].where}: the label {labels[0]!r} is not one of the {len(names)} labels: "
        f"{join_names(names)}."
    )
    if not skip_bad_lines:
        wrong = ", or count them as wrong with --unknown_labels=wrong" if unknown else ""
        raise UserError(
            f"{message} {total} have unknown labels: {text}. Fix them, or skip such examples with "
            f"--skip_bad_lines{wrong}."
        )
    if len(bad) == len(examples):
        raise UserError(f"no example has a known label; {message}")
    report(one_line(f"note: {total} are skipped; the first: {message}"))
    return [example for example, fits in zip(examples, is_known, strict=True) if fits]


def ids_to_names(examples: "Sequence[Example]", names: Sequence[str]) -> "list[Example]":
    """Returns copies of examples in which labels that are ids are replaced by their names."""
    numbers = label_numbers(names)
    renamed = {name: names[number] for name, number in numbers.items()}
    replaced = []
    for example in examples:
        labels = tuple(renamed[name] for name in _labels_of(example))
        field = "tags" if hasattr(example, "tags") else "label"
        is_one = field == "label" and isinstance(example.label, str)
        replaced.append(dataclasses.replace(example, **{field: labels[0] if is_one else labels}))
    return replaced


def check_no_numbers(examples: "Iterable[TextExample | TagExample]", names: Sequence[str]) -> None:
    """Raises UserError if an example has an id instead of a label name.

    This check is for names that were collected from the training data: their sorted order need not
    be the order of the ids.
    """
    numbers = label_numbers(names).keys() - set(map(normalize_label, names))
    for example in examples:
        for name in numbers.intersection(_labels_of(example)):
            raise UserError(
                f"{example.where}: the label {name!r} is a number, but the labels of the training "
                f"data are names, {join_names(names)}. Give the names in the order of their "
                f"numbers with --label_names."
            )


def label_conflicts(config: "BertConfig", task: "Task") -> "dict[str, tuple[Any, Any]]":
    """Returns the fields where a BertConfig differs from the `config_fields` of a task.

    Returns:
        dict of name -> (value in the config, value of the task), without fields that are None in
        the config.
    """
    pairs = {name: (getattr(config, name), value) for name, value in task.config_fields().items()}
    return {name: pair for name, pair in pairs.items() if pair[0] not in (None, pair[1])}


def check_all_present(
    examples: "Iterable[TextExample | TagExample]", names: Sequence[str], what: str
) -> None:
    """Raises UserError if a label has no example, because the model could not learn the label.

    Args:
        examples: training examples with known labels.
        names: the label names.
        what: name of the examples in the message.
    """
    numbers = label_numbers(names)
    seen = {numbers[name] for example in examples for name in _labels_of(example)}
    missing = [name for i, name in enumerate(names) if i not in seen]
    if missing:
        raise UserError(
            f"{what} has no example with the label {join_names(missing)}, so the model cannot "
            f"learn it. Add examples, or remove the name from --label_names."
        )


def join_names(names: Iterable[str]) -> str:
    """Returns comma-separated names; if there are more than 20, the first 20 and the total."""
    names = list(names)
    return ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
