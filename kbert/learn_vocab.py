"""Learns a vocabulary: python -m kbert.learn_vocab --input='text/*.txt' --vocab_file=vocab.txt"""

import pathlib

from kbert import flags, program
from kbert.errors import UserError
from kbert.settings import LearnVocabConfig

flags.define(LearnVocabConfig)


def main():
    """Runs `kbert.data.learn_vocab` with the flags."""
    config = flags.read(LearnVocabConfig)
    from kbert.data.corpus import Texts, find_inputs
    from kbert.data.vocab import learn_vocab, write_vocab

    if pathlib.Path(config.vocab_file).exists():
        raise UserError(
            f"{config.vocab_file} exists, and corpora and weights may depend on it. Remove it, or "
            f"name another --vocab_file."
        )
    pathlib.Path(config.vocab_file).parent.mkdir(parents=True, exist_ok=True)
    texts = Texts(find_inputs(config.input), skip_bad_lines=config.on_bad_line == "skip")
    vocab = learn_vocab(texts, config.vocab_size, config.lower_case)
    write_vocab(vocab, config.vocab_file)
    print(f"{len(vocab):,} entries in {config.vocab_file}")


if __name__ == "__main__":
    program.run(main)
