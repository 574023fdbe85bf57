"""Prepares a corpus: python -m kbert.prepare --input='text/*.txt' --vocab_file=vocab.txt"""

import time

from kbert.corpus.input_checks import check_text
from kbert.settings import PrepareConfig
from kbert.utils import program


def check(config: PrepareConfig) -> None:
    """Checks the inputs before TensorFlow is imported."""
    check_text(config.input)


def main(config: PrepareConfig) -> None:
    """Runs `kbert.corpus.preparation.write_corpus` with the flags."""
    from kbert.corpus.preparation import summary, write_corpus

    begin = time.monotonic()
    print("\n".join(summary(write_corpus(config, report=print))))
    print(f"{config.output_dir} was written in {time.monotonic() - begin:.0f} s")
    print(f"use it: python -m kbert.pretrain --input={config.output_dir} ...")


if __name__ == "__main__":
    program.run(main, PrepareConfig, check)
