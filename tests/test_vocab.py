"""Vocabularies: reading, checking, learning."""

import subprocess

import pytest
from warm_python import PYTHON

from kbert import learn_vocab as learn_vocab_program
from kbert.corpus.text_sources import Texts
from kbert.errors import UserError
from kbert.settings import LearnVocabConfig
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import (
    SPECIAL_TOKENS,
    extend_vocab,
    learn_vocab,
    read_vocab,
    size_note,
    vocab_fingerprint,
    write_vocab,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "A quick fox! A lazy dog? Jumping, jumped, jumps.",
    "Café and cafe; naïve and naive.",
] * 3


def test_round_trip_splits_at_line_feeds_alone(tmp_path):
    vocab = [*SPECIAL_TOKENS, "a", "b\u2028c", "##d"]
    write_vocab(vocab, tmp_path / "vocab.txt")
    assert read_vocab(tmp_path / "vocab.txt") == vocab


def test_white_space_around_entries_is_dropped(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*SPECIAL_TOKENS, "a\u2028"]).encode())
    assert read_vocab(tmp_path / "vocab.txt") == [*SPECIAL_TOKENS, "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", r"lacks \[MASK\]; .*python -m kbert.learn_vocab"),
        (b"a\nb\na\n", r"has 'a' twice, on lines 1 and 3"),
        (b"\xff\xfe", r"is not UTF-8"),
    ],
)
def test_bad_vocabularies(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_vocab(tmp_path / "vocab.txt")


def test_missing_vocabulary(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_vocab(tmp_path / "none.txt")


def test_fingerprint_depends_on_entries_order_and_casing():
    prints = {
        vocab_fingerprint(["a", "b"], True),
        vocab_fingerprint(["b", "a"], True),
        vocab_fingerprint(["a", "b"], False),
        vocab_fingerprint(["ab"], True),
    }
    assert len(prints) == 4


def test_learning_puts_special_tokens_first_and_keeps_to_the_size():
    vocab = learn_vocab(TEXTS, 60)
    assert vocab[:5] == list(SPECIAL_TOKENS)
    assert len(vocab) == len(set(vocab)) <= 60
    assert "quick" in vocab or "##uick" in vocab


@pytest.mark.parametrize("size", [32, 36, 47, 120])
def test_the_size_is_kept_and_every_word_of_the_text_known(tmp_path, size):
    """The latter when a third of the entries is enough for the characters of the text."""
    vocab = learn_vocab(TEXTS, size)
    assert len(vocab) <= size
    write_vocab(vocab, tmp_path / "vocab.txt")
    ids = BertTokenizer(tmp_path / "vocab.txt").tokenize(TEXTS).flat_values.numpy()
    assert (vocab.index("[UNK]") in ids) == (size < 120)


def test_learning_from_files(tmp_path):
    for name, lines in (("a.txt", TEXTS[:4]), ("b.txt", TEXTS[4:])):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = Texts([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert learn_vocab(files, 60) == learn_vocab(TEXTS, 60)


@pytest.mark.parametrize("size", [40, 80])
def test_learning_twice_gives_the_same(size):
    vocab = learn_vocab(TEXTS, size)
    for _ in range(4):  # a hash table decides ties in the library: one repeat could agree by luck
        assert learn_vocab(TEXTS, size) == vocab


def test_too_little_text_for_the_size_is_explained():
    """No text has a larger vocabulary then: all pieces that occur twice are in it."""
    vocab = learn_vocab(TEXTS, 4096)
    assert vocab == learn_vocab(TEXTS, 10_000)
    assert size_note(vocab, len(vocab)) == ""
    assert size_note(vocab, 4096) == (
        f"note: the vocabulary has {len(vocab):,} entries instead of 4,096, because no other "
        f"word piece occurs twice in the text"
    )


def test_casing():
    lower, cased = learn_vocab(TEXTS, 200), learn_vocab(TEXTS, 200, lower_case=False)
    assert "The" in cased and "The" not in lower and "the" in lower
    assert "é" not in "".join(lower) and "é" in "".join(cased)


def test_chinese_characters_are_entries_of_their_own():
    vocab = learn_vocab(["今天天气很好。", "天气好。"] * 2, 60)
    assert {"今", "天", "气", "好", "。"} <= set(vocab)
    assert not any(token.startswith("##") for token in vocab)


def test_learning_from_nothing_and_too_small():
    with pytest.raises(UserError, match="the text contains no words"):
        learn_vocab(["  ", ""], 100)
    with pytest.raises(UserError, match="vocab_size must be at least 32; got 31"):
        learn_vocab(TEXTS, 31)
    with pytest.raises(TypeError, match="must be a list, not an iterator"):
        learn_vocab(iter(TEXTS), 100)


def test_the_program_replaces_no_vocabulary(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    (tmp_path / "text.jsonl").write_text("{}\n")
    command = [PYTHON, "-m", "kbert.learn_vocab", f"--input={tmp_path}/text.*"]
    command += [f"--output_file={tmp_path}/new/vocab.txt", "--vocab_size=60", "--skip_bad_lines"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    found = read_vocab(tmp_path / "new/vocab.txt")
    assert done.stdout == f"{len(found)} entries in {tmp_path}/new/vocab.txt\n"
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "exists, and corpora and weights may depend" in done.stderr


# Extended vocabularies


def test_words_are_added_by_the_pieces_that_they_save():
    vocab = [*SPECIAL_TOKENS, "car", "##dio", "##my", "heart", "a", "##b"]
    texts = ["Cardiomy cardio heart", "cardiomy, cardio ab", "ab heart 心 心", "once"]
    found = extend_vocab(texts, vocab, 14)
    # cardiomy saves 2 pieces twice; the others 1 twice, or are [UNK]
    assert found == [*vocab, "cardiomy", "ab", "cardio"]
    assert extend_vocab(texts, vocab, 100) == [*vocab, "cardiomy", "ab", "cardio", "心"]
    assert extend_vocab(["Heart Heart"], vocab, 100, lower_case=False)[-1] == "Heart"
    with pytest.raises(UserError, match=r"vocab_size must be above 11, .*: --vocab_size=1011"):
        extend_vocab(texts, vocab, 11)
    with pytest.raises(UserError, match=r"the text has no word to add: each is in the vocabulary"):
        extend_vocab(["heart"], vocab, 100)


def test_extending_a_vocabulary_by_flags(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    vocab = tmp_path / "model/vocab.txt"
    write_vocab([*SPECIAL_TOKENS, "Car", "##dio"], vocab)
    settings = '{"do_lower_case": false}'
    (tmp_path / "model/tokenizer_config.json").write_text(settings)
    (tmp_path / "text.txt").write_text("Cardio is Cardio\n")
    arguments = {"input": str(tmp_path / "text.txt"), "extend": str(vocab)}
    config = LearnVocabConfig(**arguments, output_file=str(tmp_path / "new.txt"), vocab_size=32)
    learn_vocab_program.check(config)
    learn_vocab_program.main(config)
    assert read_vocab(tmp_path / "new.txt") == [*read_vocab(vocab), "Cardio"]
    assert capsys.readouterr().out.startswith("added 1 word: Cardio\n")
    config = LearnVocabConfig(**arguments | {"extend": "none.txt"})
    with pytest.raises(UserError, match=r"--extend=none.txt: there is no such vocabulary file"):
        learn_vocab_program.check(config)
