"""Learns a vocabulary: python -m kbert.learn_vocab --input='text/*.txt' --output_file=vocab.txt"""

import pathlib

from kbert.corpus.input_checks import check_text
from kbert.corpus.text_sources import Texts, find_inputs
from kbert.errors import UserError
from kbert.settings import LearnVocabConfig
from kbert.utils import atomic, program


def check(config: LearnVocabConfig) -> None:
    """Checks the input, --extend and the output before TensorFlow is imported."""
    check_text(config.input)
    if config.extend and not pathlib.Path(config.extend).is_file():
        raise UserError(f"--extend={config.extend}: there is no such vocabulary file.")
    if pathlib.Path(config.output_file).exists():
        raise UserError(
            f"{config.output_file} exists, and corpora and weights may depend on it. Remove it, or "
            f"choose another --output_file."
        )


def main(config: LearnVocabConfig) -> None:
    """Runs `learn_vocab` or `extend_vocab` of `kbert.tokenizer.vocab` with the flags."""
    from kbert.data.columns import count_text
    from kbert.tokenizer.files import is_uncased
    from kbert.tokenizer.vocab import extend_vocab, learn_vocab, read_vocab, size_note, write_vocab

    texts = Texts(find_inputs(config.input), skip_bad_lines=config.skip_bad_lines)
    with atomic.parent_folders(config.output_file):
        if config.extend:
            old, lower_case = read_vocab(config.extend), config.lower_case
            lower_case = is_uncased(config.extend) if lower_case is None else lower_case
            vocab = extend_vocab(texts, old, config.vocab_size, lower_case)
            words = vocab[len(old) :]
            more = ", ..." if len(words) > 10 else ""
            print(f"added {count_text(len(words), 'word')}: {', '.join(words[:10])}{more}")
        else:
            vocab = learn_vocab(texts, config.vocab_size, config.lower_case is not False)
        write_vocab(vocab, config.output_file)
    if note := size_note(vocab, config.vocab_size):
        print(note)
    print(f"{len(vocab):,} entries in {config.output_file}")


if __name__ == "__main__":
    program.run(main, LearnVocabConfig, check)
