"""Prepares a corpus: python -m kbert.prepare --input='text/*.txt' --vocab_file=vocab.txt"""

import time

from kbert import flags, program
from kbert.settings import PrepareConfig

flags.define(PrepareConfig)


def main():
    """Runs `kbert.data.prepare` with the flags."""
    config = flags.read(PrepareConfig)
    from kbert.data import prepare

    begin = time.monotonic()
    corpus = prepare(
        config.input,
        config.output_dir,
        config.vocab_file,
        config.lower_case,
        config.processes,
        report=print,
    )
    manifest = corpus.manifest
    print(
        f"{manifest['documents']:,} documents, {manifest['sentences']:,} sentences, "
        f"{manifest['tokens']:,} tokens from {manifest['lines']:,} lines "
        f"({manifest['lines_with_bad_utf8']:,} with bytes that are not UTF-8) "
        f"in {time.monotonic() - begin:.0f} s"
    )
    print(f"use it: python -m kbert.pretrain --input={config.output_dir} ...")


if __name__ == "__main__":
    program.run(main)
