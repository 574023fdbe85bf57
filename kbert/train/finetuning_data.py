"""The labeled examples of a fine-tuning run: reading, splits, class weights and fingerprints."""

import collections
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.data.examples import read_label_names
from kbert.data.splits import split_keys
from kbert.errors import UserError
from kbert.tasks.example_checks import overlap_warning
from kbert.tasks.examples import SplitReader
from kbert.tasks.labels import (
    check_all_present,
    check_no_numbers,
    join_names,
    keep_known_labels,
    label_names,
)
from kbert.tasks.registry import get_task
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.data.bucketed_batches import EncodedExample
    from kbert.settings import FinetuneConfig
    from kbert.tasks.task import Task


def read_splits(
    config: "FinetuneConfig",
    saved_names: tuple[str, ...] | None = None,
    teacher_labels: tuple[str, ...] | None = None,
) -> tuple[tuple[str, ...] | None, dict[str, list[Any]]]:
    """Reads the example files of a run, checks their labels, and splits the training examples.

    Returns the label names, or None if the task has none; and a dict of "train" and, if there are
    such examples, "eval" and "test" -> list of examples.

    Args:
        saved_names: label names of the checkpoint that the run resumes from, or None.
        teacher_labels: label names of the teacher, or None.

    Raises:
        UserError: a file, an example or a label cannot be used, or a split would be empty.
    """
    files = {"train": config.train_file, "eval": config.eval_file, "test": config.test_file}
    reader = SplitReader(config, report=log)
    examples = {name: reader.read(file) for name, file in files.items() if file}
    kind, names = get_task(config.task), None
    examples["train"] = kind.checked_for_training(examples["train"], config.skip_bad_lines, log)
    if kind.min_labels:
        names = saved_names or _label_names(config, teacher_labels, examples)
        examples = _keep_known(config, names, examples)
    examples = split_examples(examples, config)
    for name, rows in examples.items():
        source = files[name] or f"the {name} part of {config.train_file}"
        if name != "train" and (line := overlap_warning(examples["train"], rows, source)):
            log(line)
    return names, examples


def _label_names(config, teacher_labels, examples):
    """Returns the names in --label_names, else the teacher's, else the examples' label names."""
    names = teacher_labels
    if config.label_names:
        names = read_label_names(config.label_names)
    if not names:
        names = label_names(examples["train"])
        for rows in examples.values():
            check_no_numbers(rows, names)
    fewest = get_task(config.task).min_labels
    if len(names) < fewest:
        source, flag = config.train_file, "label_column"
        if config.label_names:
            source, flag = config.label_names, "label_names"
        raise UserError(
            f"task {config.task} needs at least {fewest} different labels; {source} has "
            f"{join_names(names) or 'none'}. Check --{flag}."
        )
    return names


def _keep_known(config, names, examples):
    """Applies `keep_known_labels` to the examples of all files."""
    unknown = {"train": None, "eval": config.unknown_labels, "test": config.unknown_labels}
    examples = {
        name: keep_known_labels(rows, names, config.skip_bad_lines, log, unknown[name])
        for name, rows in examples.items()
    }
    if config.label_names:
        check_all_present(examples["train"], names, config.train_file)
    return examples


def split_examples(
    examples: dict[str, list[Any]], config: "FinetuneConfig"
) -> dict[str, list[Any]]:
    """Moves training examples to "test" if `fold` is set, and to "eval" if `eval_fraction` is.

    Returns a new dict with the existing and the new splits, in the order "train", "eval", "test".
    Raises UserError if a split would have no examples.
    """
    examples = dict(examples)
    if config.fold:
        keys, _ = _keys(examples["train"], config)
        part = np.floor(keys * config.folds) == config.fold - 1
        _move(examples, part, "test", f"--folds={config.folds}")
    if config.eval_fraction:
        keys, classes = _keys(examples["train"], config)
        # The only example of a class stays in training, so that the class is learned.
        counts = collections.Counter(classes)
        part = (keys < config.eval_fraction) & ~np.array([counts[name] == 1 for name in classes])
        _move(examples, part, "eval", f"--eval_fraction={config.eval_fraction}")
    return {name: examples[name] for name in ("train", "eval", "test") if name in examples}


def _keys(rows, config):
    """Returns the `split_keys` of examples, and their classes."""
    classes, groups = get_task(config.task).split_groups(rows)
    return split_keys(config.seed, classes, groups), classes


def _move(examples, part, name, flag):
    """Moves the training examples for which `part` is True to the split `name`."""
    rows = examples["train"]
    if not 0 < part.sum() < len(rows):
        raise UserError(
            f"{flag} would move {part.sum()} of the {len(rows)} training examples to the {name} "
            f"set and leave one of the two sets empty. Choose another value, or provide separate "
            f"files."
        )
    for target, keep in (("train", ~part), (name, part)):
        examples[target] = [row for row, kept in zip(rows, keep, strict=True) if kept]


def class_weights(setting: str | None, task: "Task", examples: Sequence[Any]) -> np.ndarray | None:
    """Returns the loss weight of each class, (C,) floats, or None if the setting is None.

    Raises UserError if the setting is neither "balanced" nor a positive number for each class.
    """
    names = task.label_names
    if setting is None:
        return None
    if setting == "balanced":
        counts = np.bincount(task.targets(examples), minlength=len(names))
        return len(examples) / (len(names) * np.maximum(counts, 1))
    try:
        weights = [float(part) for part in setting.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(names) or not all(0 < w < np.inf for w in weights):
        raise UserError(
            f"class_weights must be balanced, or a number > 0 for each of the {len(names)} labels "
            f"{join_names(names)}, comma-separated; got {setting!r}."
        )
    return np.array(weights)


def fingerprint(items: "Sequence[EncodedExample]") -> str:
    """Returns the SHA-256 of the ids, labels and label weights of encoded examples."""
    digest = hashlib.sha256()
    for item in items:
        for array in (item.input_ids, item.labels, item.label_weights):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
