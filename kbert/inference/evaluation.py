"""Evaluation of fine-tuned models on labeled examples."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from kbert.errors import UserError
from kbert.inference.predictor import Predictor
from kbert.settings import EvaluateConfig, PruneConfig
from kbert.tasks.examples import read_split
from kbert.tasks.labels import keep_known_labels
from kbert.tasks.registry import get_task, load_task_module
from kbert.tasks.task import Task
from kbert.utils import atomic


def load_fine_tuned(
    config: EvaluateConfig | PruneConfig,
    file: str,
    dtype: str | None = None,
    report: Callable[[str], object] = print,
    unknown_labels: str | None = None,
) -> tuple[Predictor, Task, list[Any]]:
    """Loads a fine-tuned model and a file of labeled examples.

    Args:
        config: settings of the program.
        file: path of the labeled examples.
        dtype: dtype policy of the model; None for Keras' global policy, float32 by default.
        report: called with each line of output.
        unknown_labels: the argument `unknown` of `kbert.tasks.labels.keep_known_labels`.

    Returns:
        The Predictor, its Task, and the examples.

    Raises:
        UserError: the task of the model is unknown, or the model or the examples cannot be used.
    """
    load_task_module(config.task_module)
    if config.task:
        get_task(config.task)
    # With the "keras" backend, the scores equal the scores computed in training bit for bit.
    predictor = Predictor.from_pretrained(
        config.model, dtype, batch_size=config.batch_size, backend="keras"
    )
    name = config.task or (predictor.settings or {}).get("task")
    if name is None:
        raise UserError(
            f"{config.model} has no task.json, so its task is unknown. Set --task, for example "
            f"--task=classify"
        )
    task = predictor.task(name)
    examples = read_split(file, dataclasses.replace(config, task=name), report=report)
    if task.min_labels:
        known = task.label_names, config.skip_bad_lines, report, unknown_labels
        examples = keep_known_labels(examples, *known)
    return predictor, task, examples


def evaluate(config: EvaluateConfig, report: Callable[[str], object] = print) -> dict[str, Any]:
    """Scores a model on labeled examples, and writes the metrics to `results_file`, if set.

    Args:
        config: settings of the program.
        report: called with each line of output, such as the rows of the table of metrics.

    Returns:
        dict of metric -> number; for entities, also `entities`, a dict of type -> metrics.

    Raises:
        UserError: the model or the examples cannot be used.
    """
    dtype = None if config.precision == "float32" else config.precision
    predictor, task, examples = load_fine_tuned(
        config, config.eval_file, dtype, report, config.unknown_labels
    )
    predictions = predictor.predictions(task, examples)
    scores = task.scores(examples, predictions)
    text = task.report(examples, predictions)
    if text:
        report(text.rstrip())
    if config.results_file:
        path = pathlib.Path(config.results_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, scores)
    return scores
