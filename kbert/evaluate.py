"""Scores a fine-tuned BERT: python -m kbert.evaluate --model=RUN/finetuning/best --eval_file=A"""

import json

from kbert.settings import EvaluateConfig
from kbert.utils import flags, program


def main():
    """Runs `kbert.inference.evaluation.evaluate` with the flags; prints the scores as JSON."""
    config = flags.read(EvaluateConfig)
    from kbert.inference.evaluation import evaluate

    print(json.dumps(evaluate(config), indent=2))


if __name__ == "__main__":
    flags.define(EvaluateConfig)
    program.run(main)
