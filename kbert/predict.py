"""Predicts: echo "Paris is the [MASK] of France." | python -m kbert.predict --model=FOLDER"""

import sys

from kbert.settings import PredictConfig
from kbert.utils import flags, program


def main():
    """Runs `kbert.inference.prediction.predict` with the flags."""
    config = flags.read(PredictConfig)
    from kbert.inference.prediction import predict

    predict(config, report=lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    flags.define(PredictConfig)
    program.run(main)
