"""Writes the predictions for labeled examples, with a report and a confusion matrix."""

import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kbert.tasks.labels import all_label_names
from kbert.utils.logging import log
from kbert.visualization import plots

if TYPE_CHECKING:
    from kbert.tasks.task import Task


def write_predictions(
    folder: pathlib.Path,
    name: str,
    task: "Task",
    examples: Sequence[Any],
    predictions: Sequence[dict[str, Any]],
) -> None:
    """Writes `NAME_predictions.jsonl` and, for some tasks, a report and a confusion matrix.

    If the task has a report, it is logged and written to `NAME_report.txt`. For classification
    tasks, the confusion matrix is drawn in `NAME_confusion.png`.
    """
    text = task.report(examples, predictions)
    if text:
        log(f"{name}:\n{text.rstrip()}")
        (folder / f"{name}_report.txt").write_text(text, encoding="utf-8")
    if task.is_classification:
        plots.plot_confusion_matrix(
            folder / f"{name}_confusion.png",
            task.targets(examples),
            task.predicted_numbers(predictions),
            all_label_names(examples, task.label_names),
        )
    with open(folder / f"{name}_predictions.jsonl", "w", encoding="utf-8") as file:
        for example, prediction in zip(examples, predictions, strict=True):
            where = {"where": example.where}
            file.write(json.dumps(where | prediction, ensure_ascii=False) + "\n")
