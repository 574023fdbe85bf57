"""Names of labels: those of the data or of the user, and examples that do not fit them."""

import re

from kbert.errors import UserError, one_line


def _labels_of(example):
    """The names of the labels of an example."""
    if hasattr(example, "tags"):
        return example.tags
    return example.label if isinstance(example.label, tuple) else (example.label,)


def _sort_key(name):
    return (0, int(name), "") if re.fullmatch(r"-?[0-9]{1,99}", name) else (1, 0, name)


def label_names(examples):
    """The names of all labels in examples, sorted: numbers by size, then the others."""
    return tuple(
        sorted({name for example in examples for name in _labels_of(example)}, key=_sort_key)
    )


def label_numbers(names):
    """dict of name -> number; where names are not numbers themselves, "0" stands for the first."""
    numbers = {name: i for i, name in enumerate(names)}
    if not any(re.fullmatch(r"[0-9]+", name) for name in names):
        numbers |= {str(i): i for i in range(len(names))}
    return numbers


def keep_known(examples, names, skip_bad_lines, report):
    """The examples whose labels all have a name in `names`.

    Args:
        examples: list of labelled examples. names: tuple of str.
        skip_bad_lines: leave the others out, instead of raising. report: called with their count.

    Raises:
        UserError: a label that is not known, with file and line; or no example is left.
    """
    numbers = label_numbers(names)
    kept, first = [], None
    for example in examples:
        unknown = next((name for name in _labels_of(example) if name not in numbers), None)
        if unknown is None:
            kept.append(example)
            continue
        message = (
            f"{example.where}: the label {unknown!r} is not one of the {len(names)} there are: "
            f"{shown(names)}."
        )
        if not skip_bad_lines:
            raise UserError(f"{message} Mend it, or leave such lines out with --skip_bad_lines.")
        first = first or message
    if not kept:
        raise UserError(f"no example is left; {first}")
    if first:
        left = len(examples) - len(kept)
        line = f"note: {left:,} of {len(examples):,} examples are left out; the first: {first}"
        report(one_line(line))
    return kept


def differing_labels(config, task):
    """Fields of a BertConfig that contradict a Task: dict of name -> (its value, the task's).

    None in the config contradicts nothing.
    """
    pairs = {name: (getattr(config, name), value) for name, value in task.config_fields().items()}
    return {name: pair for name, pair in pairs.items() if pair[0] not in (None, pair[1])}


def check_all_present(examples, names, what):
    """Raises UserError for names that no example has: what is never seen is never predicted."""
    numbers = label_numbers(names)
    seen = {numbers[name] for example in examples for name in _labels_of(example)}
    missing = [name for i, name in enumerate(names) if i not in seen]
    if missing:
        raise UserError(
            f"{what} has no example of {shown(missing)}, so it could not be learnt. Add examples, "
            f"or take the name out of --label_names."
        )


def shown(names):
    """Names as text: the first ones where there are many."""
    names = list(names)
    return ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
