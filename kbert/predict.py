"""Predicts: echo "Paris is the [MASK] of France." | python -m kbert.predict --model=FOLDER"""

import pathlib
import sys

from kbert.data.input_checks import check_inputs
from kbert.errors import UserError
from kbert.settings import METHODS, PredictConfig
from kbert.tasks.names import all_built_in, check_method
from kbert.utils import program


def check(config: PredictConfig) -> None:
    """Checks the method, the inputs and the output folder before TensorFlow is imported."""
    if all_built_in(config.task_module):
        check_method(config.method, METHODS)
    check_inputs([config.model], [config.input_file] if config.input_file != "-" else [])
    folder = pathlib.Path(config.output_file).absolute().parent
    if not folder.is_dir():
        raise UserError(f"--output_file={config.output_file}: there is no folder {folder}.")


def main(config: PredictConfig) -> None:
    """Runs `kbert.inference.prediction.predict` with the flags."""
    from kbert.inference.prediction import predict

    predict(config, report=lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    program.run(main, PredictConfig, check)
