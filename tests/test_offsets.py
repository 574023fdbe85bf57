"""Where pieces come from: offsets of hand, of Hugging Face's tokenizer, and what they must obey."""

import itertools
import json
import random
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from marks import slow
from tokenizers.implementations import BertWordPieceTokenizer

from kbert.errors import UserError
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

MODELS = [("uncased", True), ("cased", False), ("chinese", True)]
WORDS = [
    "caf",
    "##e",
    "##é",
    "cafe",
    "the",
    "cat",
    "##s",
    "b",
    "##b",
    "天",
    "气",
    ",",
    "\U0001f600",
]
WORDS += ["\u1112", "##\u1161", "##\u11ab", "ς", "##ς", "##σ", "α", "#"]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    write_vocab([*SPECIAL_TOKENS, *WORDS], path)
    return path


def google(shared_data, name, lower_case):
    return BertTokenizer(shared_data / f"vocab/bert-base-{name}-vocab.txt", lower_case)


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def pieces(tokenizer, text):
    """(entry of the vocabulary, start, end) of each piece."""
    ids, starts, ends = (x.to_list()[0] for x in tokenizer.tokenize_with_offsets([text]))
    return list(zip((tokenizer.vocab[i] for i in ids), starts, ends, strict=True))


def words(tokenizer, ids, starts, ends):
    """[ids, start, end] of words: a piece and the pieces with ## behind it."""
    found = []
    for piece, start, end in zip(ids, starts, ends, strict=True):
        entry = tokenizer.vocab[piece]
        if found and entry.startswith("##") and len(entry) > 2:
            found[-1][0].append(piece)
            found[-1][2] = end
        else:
            found.append([[piece], start, end])
    return found


def check(tokenizer, texts):
    """What holds for any text; returns all words as (id of the text, ids, bytes)."""
    found = tokenizer.tokenize_with_offsets(texts)
    assert [x.dtype for x in found] == [tf.int32] * 3
    ids, starts, ends = (x.to_list() for x in found)
    assert ids == tokenizer.tokenize(texts).to_list()
    everything = []
    for number, (text, *row) in enumerate(zip(texts, ids, starts, ends, strict=True)):
        source = as_bytes(text)
        borders = {0, len(source), *(i for i, b in enumerate(source) if b & 0xC0 != 0x80)}
        is_valid = source.decode("utf-8", "ignore").encode() == source
        _, begins, stops = row
        assert begins == sorted(begins) and stops == sorted(stops), text
        assert all(0 <= a < b <= len(source) for a, b in zip(begins, stops, strict=True)), text
        assert not is_valid or borders.issuperset([*begins, *stops]), text
        parts = words(tokenizer, *row)
        gaps = zip([0, *(end for *_, end in parts)], [start for _, start, _ in parts], strict=False)
        assert all(end <= start for end, start in gaps), text
        everything += [(number, part, source[start:end]) for part, start, end in parts]
    return everything


def check_words_alone(tokenizer, texts):
    """The text of each word, tokenized alone, gives its pieces."""
    everything = check(tokenizer, texts)
    alone = tokenizer.tokenize([source for *_, source in everything]).to_list()
    for (number, part, source), again in zip(everything, alone, strict=True):
        assert part == again, (texts[number], source)
    return len(everything)


def real_lines(shared_data):
    """Hostile and ordinary lines, and more of other files."""
    lines = []
    for name in ("torture", "ordinary"):
        path = shared_data / f"tokenizer/{name}.jsonl"
        lines += [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    for name in ("cola/in_domain_dev.tsv", "wnut17/emerging.dev.conll", "chnsenticorp/dev.tsv"):
        with (shared_data / name).open(encoding="utf-8", newline="\n") as file:
            lines += [line.rstrip("\n") for line in itertools.islice(file, 100)]
    return lines


@pytest.mark.parametrize(("name", "lower_case"), MODELS)
def test_real_lines(shared_data, name, lower_case):
    lines = real_lines(shared_data)
    assert len(lines) == 745
    assert check_words_alone(google(shared_data, name, lower_case), lines) > 10_000


@pytest.mark.parametrize(("name", "lower_case"), MODELS)
def test_equals_hugging_face_but_for_accents_at_the_end(shared_data, name, lower_case):
    """There an accent that is stripped belongs to a word only in its middle; ids differ for words
    of over 100 characters and for code points that are new in Unicode."""
    tokenizer = google(shared_data, name, lower_case)
    vocab = {word: i for i, word in enumerate(tokenizer.vocab)}
    other = BertWordPieceTokenizer(vocab, lowercase=lower_case)
    lines = real_lines(shared_data)
    rows = [x.to_list() for x in tokenizer.tokenize_with_offsets(lines)]
    compared, longer = 0, 0
    for number, (line, ids, *spans) in enumerate(zip(lines, *rows, strict=True)):
        encoding = other.encode(line, add_special_tokens=False)
        if encoding.ids != ids:
            assert number < 145  # the hostile lines
            continue
        compared += 1
        to_byte = [0, *itertools.accumulate(len(c.encode()) for c in line)]
        theirs = [(to_byte[start], to_byte[end]) for start, end in encoding.offsets]
        for (start, end), mine in zip(theirs, zip(*spans, strict=True), strict=True):
            accents = line.encode()[end : mine[1]].decode()
            assert (start, end + len(accents.encode())) == mine, line
            assert lower_case or not accents
            assert {unicodedata.category(c) for c in accents} <= {"Mn"}
            longer += bool(accents)
        assert number < 145 or [e for _, e in theirs] == spans[1]  # no such accent in the others
    assert compared >= 743
    assert (longer > 100) == lower_case


@pytest.mark.parametrize(("strip_accents", "chinese"), [(True, True), (False, True), (True, False)])
def test_every_character(vocab, strip_accents, chinese):
    tokenizer = BertTokenizer(
        vocab, True, strip_accents=strip_accents, tokenize_chinese_chars=chinese
    )
    names = {chr(c): unicodedata.category(chr(c)) for c in range(0x110000)}
    characters = [c for c, name in names.items() if name not in ("Cn", "Co", "Cs")]
    characters = [c for c in characters if names[c] != "Lo" or ord(c) % 5 == 0]  # a fifth of these
    for begin in range(0, len(characters), 50_000):
        part = characters[begin : begin + 50_000]
        for number, ids, source in check(tokenizer, part):
            assert ids and unicodedata.normalize("NFC", source.decode()) == unicodedata.normalize(
                "NFC", part[number]
            )
        check_words_alone(tokenizer, [f"b{c}b {c}" for c in part[::7]])


def test_mixtures_of_characters(shared_data):
    """All letters and marks, in no order; a cased vocabulary with lower-casing."""
    generator = random.Random(3)
    known = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c))[0] not in "C"]
    marks = [c for c in known if unicodedata.category(c)[0] == "M"] + ["\u200d", "\ufe0f"]
    texts = ["".join(generator.choices(known, k=generator.randrange(40))) for _ in range(2000)]
    for _ in range(2000):
        texts.append("a" + "".join(generator.choices(marks, k=generator.randrange(1, 5))) + "b")
    tokenizer = google(shared_data, "cased", True)
    assert check_words_alone(tokenizer, texts) > 10_000


def test_any_bytes(vocab):
    generator = random.Random(4)
    tokenizer = BertTokenizer(vocab)
    parts = [
        b"\xf0\x9f",
        b"\xe5\xa4",
        "天".encode(),
        b"the",
        b" ",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"b",
    ]
    texts = [bytes(generator.choices(range(256), k=generator.randrange(30))) for _ in range(3000)]
    texts += [b"".join(generator.choices(parts, k=generator.randrange(20))) for _ in range(3000)]
    assert check_words_alone(tokenizer, texts) > 10_000


@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("lower_case", [True, False])
def test_long_words(vocab, lower_case, chinese):
    generator = random.Random(5)
    tokenizer = BertTokenizer(vocab, lower_case, tokenize_chinese_chars=chinese)
    texts, parts = (
        [],
        ["b", "é", "e\u0301", "\u200b", "天", ",", " ", "\t", "\u3000", "한", "\U0001f600"],
    )
    for _ in range(300):
        some = generator.sample(parts, generator.randrange(1, 3))
        texts.append("".join(generator.choices(some, k=generator.choice([3, 200, 201, 405]))))
        odd, size = generator.choice(parts), generator.randrange(90, 201)
        texts.append("cat " + "b" * size + odd + "b" * generator.randrange(201) + "天 cats")
    check_words_alone(tokenizer, texts)
    found = [row for row in tokenizer.tokenize(texts).to_list() if tokenizer.unk_id in row]
    assert len(found) > 100


def test_accents(vocab):
    tokenizer = BertTokenizer(vocab)
    assert pieces(tokenizer, "Café, b") == [("cafe", 0, 5), (",", 5, 6), ("b", 7, 8)]
    assert pieces(tokenizer, "Cafe\u0301, b") == [("cafe", 0, 6), (",", 6, 7), ("b", 8, 9)]
    assert pieces(tokenizer, "the\u0301\u0302s b\u0301") == [
        *(("the", 0, 7), ("##s", 7, 8), ("b", 9, 12))
    ]
    assert pieces(tokenizer, "cat\u0301s") == [("cat", 0, 5), ("##s", 5, 6)]
    assert pieces(tokenizer, " \u0301cat") == [("cat", 3, 6)]  # an accent of nothing
    cased = BertTokenizer(vocab, lower_case=False)
    assert pieces(cased, "café cafe") == [("caf", 0, 3), ("##é", 3, 5), ("cafe", 6, 10)]
    assert pieces(cased, "cafe\u0301 b") == [("[UNK]", 0, 6), ("b", 7, 8)]


def test_chinese_emoji_and_hangul(vocab):
    tokenizer = BertTokenizer(vocab)
    assert pieces(tokenizer, "天气,b天") == [
        *(("天", 0, 3), ("气", 3, 6), (",", 6, 7), ("b", 7, 8), ("天", 8, 11))
    ]
    assert pieces(tokenizer, "b \U0001f600\ufe0f\u200d b") == [
        *(("b", 0, 1), ("\U0001f600", 2, 9), ("b", 13, 14))
    ]
    assert pieces(tokenizer, "b한b") == [("[UNK]", 0, 5)]
    # NFD makes three letters of one; all of them are that one.
    assert pieces(tokenizer, "a 한b") == [
        ("[UNK]", 0, 1),
        *((piece, 2, 5) for piece in ("\u1112", "##\u1161", "##\u11ab")),
        ("##b", 5, 6),
    ]


def test_chinese_characters_that_are_no_words(vocab):
    tokenizer = BertTokenizer(vocab, tokenize_chinese_chars=False)
    text = "天 天气,b\u3000" + "b" * 201 + "\u0301 Café"
    assert pieces(tokenizer, text) == [
        *(("天", 0, 3), ("[UNK]", 4, 10), (",", 10, 11), ("b", 11, 12)),
        *(("[UNK]", 15, 15 + 203), ("cafe", 219, 224)),
    ]


def test_white_space_and_what_is_dropped(vocab):
    tokenizer = BertTokenizer(vocab)
    assert pieces(tokenizer, "\tthe\r\n\xa0cats\u3000b ") == [
        *(("the", 1, 4), ("cat", 8, 11), ("##s", 11, 12), ("b", 15, 16))
    ]
    assert pieces(tokenizer, "\ufeffc\u00ada\x00t\u200b\u200bs\u200b b") == [
        *(("cat", 3, 9), ("##s", 15, 16), ("b", 20, 21))
    ]


def test_long_word_among_others(vocab):
    """Its [UNK] spans the word, and the accent on its last letter."""
    tokenizer = BertTokenizer(vocab)
    text = "b,b," + "é" * 201 + "\u0301,b" + "b" * 199 + " 天"
    found = pieces(tokenizer, text)
    assert found[:6] == [
        *(("b", 0, 1), (",", 1, 2), ("b", 2, 3), (",", 3, 4)),
        *(("[UNK]", 4, 408), (",", 408, 409)),
    ]
    assert found[6:] == [
        *(("b", 409, 410), *(("##b", i, i + 1) for i in range(410, 609)), ("天", 610, 613))
    ]


def test_invalid_bytes(vocab):
    tokenizer = BertTokenizer(vocab)
    assert pieces(tokenizer, b"\xffc\xffat\xc3 \xed\xa0\x80b\xf0\x9f\x98") == [
        *(("cat", 1, 5), ("b", 10, 11))
    ]
    assert pieces(tokenizer, b"\xe5\xa4cat\xe5\xa4\xa9\xe5") == [("cat", 2, 5), ("天", 5, 8)]


def test_final_sigma_is_the_exception(vocab):
    """Its small letter depends on what is behind the word, so the word alone has other pieces."""
    tokenizer = BertTokenizer(vocab)
    text = "ΑΣ ΑΣ'Α"
    assert pieces(tokenizer, text)[:4] == [
        *(("α", 0, 2), ("##ς", 2, 4), ("α", 5, 7), ("##σ", 7, 9))
    ]
    check(tokenizer, [text, "Σ", "ΑΣ,Σ", "ΣΣ"])


@pytest.mark.parametrize("size", [3, *slow(1, 7)])
def test_inside_tf_data(vocab, size):
    """Batches with and without long words, of different sizes."""
    tokenizer = BertTokenizer(vocab)
    texts = ["Café", "", "the 天 cats", " ", "b" * 333 + " b", "\u0301", "cat", "cats, b"]
    rows = [x.to_list() for x in tokenizer.tokenize_with_offsets(texts)]
    dataset = tf.data.Dataset.from_tensor_slices(texts).batch(size)
    batches = list(dataset.map(tokenizer.tokenize_with_offsets))
    for place, row in enumerate(rows):
        assert [x for batch in batches for x in batch[place].to_list()] == row


def test_inside_an_exported_graph(vocab, tmp_path):
    tokenizer = BertTokenizer(vocab)
    module = tf.Module()
    module.tokenizer = tokenizer
    signature = [tf.TensorSpec([None], tf.string)]
    module.run = tf.function(tokenizer.tokenize_with_offsets, input_signature=signature)
    tf.saved_model.save(module, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    for texts in (["Café\u0301 天", "b" * 201, ""], ["cats"]):
        expected = tokenizer.tokenize_with_offsets(texts)
        found = loaded.run(tf.constant(texts))
        assert [x.to_list() for x in found] == [x.to_list() for x in expected]


@pytest.mark.parametrize("chinese", [True, False])
def test_no_texts(vocab, chinese):
    tokenizer = BertTokenizer(vocab, tokenize_chinese_chars=chinese)
    for texts in (tf.zeros([0], tf.string), tf.constant(["", "\u200b"])):
        found = tokenizer.tokenize_with_offsets(texts)
        assert [x.to_list() for x in found] == [[[]] * len(texts)] * 3


def test_special_tokens_in_text(vocab):
    tokenizer = BertTokenizer(vocab, special_tokens_in_text=True)
    with pytest.raises(UserError, match="create the tokenizer with special_tokens_in_text=F"):
        tokenizer.tokenize_with_offsets(["[MASK]"])
    plain = BertTokenizer(vocab)
    assert np.shape(pieces(plain, "[MASK]")) == (3, 3)  # bracket, letters, bracket
