"""Prepares a corpus: python -m kbert.prepare --input='text/*.txt' --vocab_file=vocab.txt"""

import time

from kbert import flags, program
from kbert.settings import PrepareConfig

flags.define(PrepareConfig)


def main():
    """Runs `kbert.data.preparation.write_corpus` with the flags."""
    config = flags.read(PrepareConfig)
    from kbert.data.preparation import summary, write_corpus

    begin = time.monotonic()
    print("\n".join(summary(write_corpus(config, report=print))))
    print(f"{config.output_dir} was made in {time.monotonic() - begin:.0f} s")
    print(f"use it: python -m kbert.pretrain --input={config.output_dir} ...")


if __name__ == "__main__":
    program.run(main)
