"""Evaluation of fine-tuned models on labeled examples."""

import dataclasses
import pathlib

from kbert.errors import UserError
from kbert.inference.predictor import Predictor
from kbert.tasks.examples import read_examples
from kbert.tasks.labels import keep_known
from kbert.tasks.registry import get_task, load_task_module
from kbert.utils import atomic


def fine_tuned(config, file, dtype=None, report=print):
    """Loads a Predictor, its Task, and the list of a file's examples.

    Args:
        config: an ExampleConfig with `model` and `batch_size`. file: labeled examples.
        dtype: of the model. report: called with lines of text.

    Raises:
        UserError: a model or examples that cannot be used, with file and line.
    """
    load_task_module(config.task_module)
    if config.task:
        get_task(config.task)
    # The "keras" backend gives the same scores as training, bit for bit.
    predictor = Predictor.from_pretrained(
        config.model, dtype, batch_size=config.batch_size, backend="keras"
    )
    name = config.task or (predictor.settings or {}).get("task")
    if name is None:
        raise UserError(f"{config.model} does not say what it is for. Name it: --task=classify")
    task = predictor.task(name)
    examples = read_examples(file, dataclasses.replace(config, task=name), report=report)
    if task.fewest_labels:
        examples = keep_known(examples, task.label_names, config.skip_bad_lines, report)
    return predictor, task, examples


def evaluate(config, report=print):
    """Scores a model on labeled examples: dict of name -> score.

    Args:
        config: EvaluateConfig. report: called with lines of text.

    Raises:
        UserError: a model or examples that cannot be used, with file and line.
    """
    dtype = None if config.precision == "float32" else config.precision
    predictor, task, examples = fine_tuned(config, config.eval_file, dtype, report)
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
