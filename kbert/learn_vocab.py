"""Learns a vocabulary: python -m kbert.learn_vocab --input='text/*.txt' --output_file=vocab.txt"""

import pathlib

from kbert.corpus.input_checks import check_text
from kbert.corpus.text_sources import Texts, find_inputs
from kbert.errors import UserError
from kbert.settings import LearnVocabConfig
from kbert.utils import atomic, program


def check(config: LearnVocabConfig) -> None:
    """Checks the input and the output before TensorFlow is imported."""
    check_text(config.input)
    if pathlib.Path(config.output_file).exists():
        raise UserError(
            f"{config.output_file} exists, and corpora and weights may depend on it. Remove it, or "
            f"choose another --output_file."
        )


def main(config: LearnVocabConfig) -> None:
    """Runs `kbert.tokenizer.learn_vocab` with the flags."""
    from kbert.tokenizer.vocab import learn_vocab, size_note, write_vocab

    texts = Texts(find_inputs(config.input), skip_bad_lines=config.skip_bad_lines)
    with atomic.parent_folders(config.output_file):
        vocab = learn_vocab(texts, config.vocab_size, config.lower_case)
        write_vocab(vocab, config.output_file)
    if note := size_note(vocab, config.vocab_size):
        print(note)
    print(f"{len(vocab):,} entries in {config.output_file}")


if __name__ == "__main__":
    program.run(main, LearnVocabConfig, check)
