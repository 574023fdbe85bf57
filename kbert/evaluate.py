"""Scores a fine-tuned BERT: python -m kbert.evaluate --model=RUN/finetuning/best --eval_file=A"""

import dataclasses
import json
import pathlib

from kbert import flags, program
from kbert.errors import UserError
from kbert.settings import EvaluateConfig


def evaluate(config, report=print):
    """Scores a model on labelled examples.

    Args:
        config: EvaluateConfig. report: called with lines of text.

    Returns:
        dict of name -> score.

    Raises:
        UserError: a model or examples that cannot be used, with file and line.
    """
    from kbert.data.examples import read_examples
    from kbert.tasks.folders import LABELLED_TASKS
    from kbert.tasks.labels import keep_known
    from kbert.tasks.predictor import Predictor

    dtype = None if config.precision == "float32" else config.precision
    # "live": the same figures as in training, to the last bit.
    predictor = Predictor.from_pretrained(
        config.model, dtype, batch_size=config.batch_size, engine="live"
    )
    name = config.task or (predictor.settings or {}).get("task")
    if name is None:
        raise UserError(f"{config.model} does not say what it is for. Name it: --task=classify")
    config = dataclasses.replace(config, task=name)
    task = predictor.task(name)
    examples = read_examples(config.eval_file, config, report=report)
    if name in LABELLED_TASKS:
        examples = keep_known(examples, task.label_names, config.skip_bad_lines, report)
    predictions = predictor.predictions(task, examples)
    scores = task.scores(examples, predictions)
    text = task.report(examples, predictions)
    if text:
        report(text.rstrip())
    if config.results_file:
        path = pathlib.Path(config.results_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return scores


def main():
    """Runs `evaluate` with the flags; prints the scores as JSON."""
    print(json.dumps(evaluate(flags.read(EvaluateConfig)), indent=2))


if __name__ == "__main__":
    flags.define(EvaluateConfig)
    program.run(main)
