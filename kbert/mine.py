"""Finds hard negatives: python -m kbert.mine --model=FOLDER --pairs_file=A --output_file=B.jsonl

The output has the pairs with negatives, for `python -m kbert.finetune` with --task=embed or
--task=rerank.
"""

import pathlib

from kbert.data.input_checks import check_inputs
from kbert.errors import UserError
from kbert.settings import MineConfig
from kbert.utils import program


def check(config: MineConfig) -> None:
    """Checks the inputs and the output folder before TensorFlow is imported."""
    check_inputs([config.model], [config.pairs_file, config.corpus_file])
    folder = pathlib.Path(config.output_file).absolute().parent
    if not folder.is_dir():
        raise UserError(f"--output_file={config.output_file}: there is no folder {folder}.")


def main(config: MineConfig) -> None:
    """Runs `kbert.inference.mining.mine` with the flags."""
    from kbert.inference.mining import mine

    mine(config)


if __name__ == "__main__":
    program.run(main, MineConfig, check)
