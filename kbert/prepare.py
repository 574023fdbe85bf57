"""Prepares a corpus: python -m kbert.prepare --input='text/*.txt' --vocab_file=vocab.txt"""

import time

from kbert.settings import PrepareConfig
from kbert.utils import flags, program

flags.define(PrepareConfig)


def main():
    """Runs `kbert.corpus.preparation.write_corpus` with the flags."""
    config = flags.read(PrepareConfig)
    from kbert.corpus.preparation import summary, write_corpus

    begin = time.monotonic()
    print("\n".join(summary(write_corpus(config, report=print))))
    print(f"{config.output_dir} was made in {time.monotonic() - begin:.0f} s")
    print(f"use it: python -m kbert.pretrain --input={config.output_dir} ...")


if __name__ == "__main__":
    program.run(main)
