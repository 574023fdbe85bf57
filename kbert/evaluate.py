"""Scores a fine-tuned BERT: python -m kbert.evaluate --model=RUN/finetuning/best --eval_file=A"""

import json

from kbert.data.input_checks import check_inputs
from kbert.settings import EvaluateConfig
from kbert.utils import program


def check(config: EvaluateConfig) -> None:
    """Checks the inputs before TensorFlow is imported."""
    check_inputs([config.model], [config.eval_file])


def main(config: EvaluateConfig) -> None:
    """Runs `kbert.inference.evaluation.evaluate` with the flags and prints the scores as JSON."""
    from kbert.inference.evaluation import evaluate

    print(json.dumps(evaluate(config), indent=2))


if __name__ == "__main__":
    program.run(main, EvaluateConfig, check)
