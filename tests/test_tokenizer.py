"""The tokenizer against the outputs of google-research/bert's own."""

import json
import random
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from kbert.errors import UserError
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

MODELS = [("uncased", True), ("cased", False), ("chinese", True)]


def google(shared_data, name, lower_case, **kwargs):
    return BertTokenizer(shared_data / f"vocab/bert-base-{name}-vocab.txt", lower_case, **kwargs)


@pytest.mark.parametrize("special_tokens_in_text", [False, True])
@pytest.mark.parametrize("file", ["torture.jsonl", "ordinary.jsonl"])
@pytest.mark.parametrize(("name", "lower_case"), MODELS)
def test_equals_google(shared_data, name, lower_case, file, special_tokens_in_text):
    tokenizer = google(shared_data, name, lower_case, special_tokens_in_text=special_tokens_in_text)
    rows = [json.loads(line) for line in (shared_data / "tokenizer" / file).open(encoding="utf-8")]
    found = tokenizer.tokenize([row["text"] for row in rows]).to_list()
    assert len(rows) > 100
    for row, ids in zip(rows, found, strict=True):
        assert ids == row[f"{name}_ids"], row["id"]


@pytest.mark.parametrize("file", ["torture.jsonl", "ordinary.jsonl"])
@pytest.mark.parametrize(("name", "lower_case"), MODELS)
def test_equals_google_inside_tf_data(shared_data, name, lower_case, file):
    tokenizer = google(shared_data, name, lower_case)
    rows = [json.loads(line) for line in (shared_data / "tokenizer" / file).open(encoding="utf-8")]
    dataset = tf.data.Dataset.from_tensor_slices([row["text"] for row in rows]).batch(7)
    found = [ids for batch in dataset.map(tokenizer.tokenize) for ids in batch.to_list()]
    assert found == [row[f"{name}_ids"] for row in rows]


class PlainTokenizer:
    """google-research/bert's `tokenization.FullTokenizer`, written again in plain Python."""

    def __init__(self, vocab, lower_case):
        self.vocab, self.lower_case = {token: i for i, token in enumerate(vocab)}, lower_case

    def tokenize(self, text):
        return [self.vocab[piece] for word in self._words(text) for piece in self._pieces(word)]

    def _words(self, text):
        clean = ""
        for character in text:
            category = unicodedata.category(character)
            if character in " \t\n\r" or category == "Zs":
                clean += " "
            elif character != "\ufffd" and category not in ("Cc", "Cf"):
                ranges = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF))
                ideograph = any(a <= ord(character) <= b for a, b in ranges)
                clean += f" {character} " if ideograph else character
        words = ""
        for word in clean.split():
            if self.lower_case:
                word = unicodedata.normalize("NFD", word.lower())
                word = "".join(c for c in word if unicodedata.category(c) != "Mn")
            for character in word:
                category = unicodedata.category(character)
                is_punctuation = category[0] == "P" or (category[0] == "S" and character < "\x7f")
                words += f" {character} " if is_punctuation else character
            words += " "
        return words.split()

    def _pieces(self, word):
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.vocab), None)
            if end is None or len(word) > 200:
                return ["[UNK]"]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces


# Letters, spaces, punctuation and other characters, some of several code points.
CHARACTERS = [
    *(
        "abAB",
        "éÉüñß",
        "e\u0301",
        "กขฃ",
        "한국",
        "дЖ",
        "\ufe8d\ufb01",
        "０Ａ",
        "々〇",
        "\u2044\u4dc0",
    ),
    *("天气好", "\U00020000", "\U0001f600\U0002ceb0", "\t \n", "\xa0\u3000\u2003\u202f"),
    *("\u2028\u2029", "\x0b\x0c\x1c\x85", "\u200b\u200d\ufeff\u00ad", ".,$+-`~", "。，、“‘…"),
]


def hostile_texts(seed, count=250):
    generator = random.Random(seed)
    for _ in range(count):
        characters = "".join(generator.sample(CHARACTERS, generator.randrange(1, 4)))
        length = generator.choice([3, 12, 199, 200, 201, 202, 320])
        yield "".join(generator.choices(characters, k=length))
        odd = generator.choice(generator.choice(CHARACTERS))  # in the middle of a long text
        yield "a" * generator.randrange(90, 201) + odd + "b" * generator.randrange(201)


@pytest.mark.parametrize("lower_case", [False, True])
def test_equals_a_plain_tokenizer_on_hostile_texts(tmp_path, lower_case):
    """With a vocabulary that knows most characters, so that nothing hides behind [UNK]."""
    known = sorted({c for c in "".join(CHARACTERS) if unicodedata.category(c)[0] not in "CZ"})
    known += sorted({d for c in known for d in unicodedata.normalize("NFD", c.lower())} - {*known})
    words = [piece for c in known if c not in "`〇" for piece in (c, f"##{c}")] + ["aa", "##bab"]
    write_vocab([*SPECIAL_TOKENS, *words], tmp_path / "vocab.txt")
    tokenizer = BertTokenizer(tmp_path / "vocab.txt", lower_case)
    plain = PlainTokenizer(tokenizer.vocab, lower_case)
    texts = list(hostile_texts(seed=5))
    for text, ids in zip(texts, tokenizer.tokenize(texts).to_list(), strict=True):
        assert ids == plain.tokenize(text), text


@pytest.fixture
def facts(shared_data):
    return json.loads((shared_data / "tokenizer/bert_reference_facts.json").read_text("utf-8"))


def with_vocab(tmp_path, words, lower_case=True):
    missing = [token for token in SPECIAL_TOKENS if token not in words]
    write_vocab([*dict.fromkeys(words), *missing], tmp_path / "vocab.txt")
    return BertTokenizer(tmp_path / "vocab.txt", lower_case)


def tokens(tokenizer, text):
    return [tokenizer.vocab[i] for i in tokenizer.tokenize([text]).to_list()[0]]


@pytest.mark.parametrize("part", ["full_tokenizer", "wordpiece"])
def test_words_and_pieces_of_the_reference_test(facts, tmp_path, part):
    lower_case = facts[part].get("do_lower_case", False)
    tokenizer = with_vocab(tmp_path, facts[part]["vocab"], lower_case)
    for case in facts[part]["cases"]:
        assert tokens(tokenizer, case["text"]) == case["tokens"]
        ids = case.get("ids", [tokenizer.vocab.index(token) for token in case["tokens"]])
        assert tokenizer.tokenize([case["text"]]).to_list() == [ids]


def test_basic_facts_of_the_reference_test(facts, tmp_path):
    for fact in facts["basic"]:
        tokenizer = with_vocab(tmp_path, fact["tokens"], fact["do_lower_case"])
        assert tokens(tokenizer, fact["text"]) == fact["tokens"]


def test_classes_of_characters_of_the_reference_test(facts, tmp_path):
    def parts(character):
        words = ["x", "##x", character.strip() or "x"]
        return tokens(with_vocab(tmp_path, words, lower_case=False), f"x{character}x")

    for character in facts["is_whitespace"]["true"]:
        assert parts(character) == ["x", "x"]
    for character in facts["is_whitespace"]["false"]:
        assert parts(character) != ["x", "x"]
    for character in facts["is_control"]["true"]:
        assert parts(character) == ["x", "##x"]
    for character in facts["is_control"]["false"]:
        assert parts(character) != ["x", "##x"]
    for character in facts["is_punctuation"]["true"]:
        assert parts(character) == ["x", character, "x"]
    for character in facts["is_punctuation"]["false"]:
        assert parts(character) != ["x", character, "x"]


def test_special_tokens_in_text_only_when_asked_for(vocab_file):
    text = "the [MASK] sat[SEP]"
    plain = BertTokenizer(vocab_file)
    assert tokens(plain, text) == ["the", "[", "mask", "]", "sat", "[", "[UNK]", "]"]
    asked = BertTokenizer(vocab_file, special_tokens_in_text=True)
    assert tokens(asked, text) == ["the", "[MASK]", "sat", "[SEP]"]
    assert tokens(asked, "[mask] [PAD][CLS] [UNK]") == [
        *("[", "mask", "]", "[PAD]", "[CLS]", "[UNK]")
    ]


@pytest.mark.parametrize("special_tokens_in_text", [False, True])
def test_private_use_characters_are_unknown_words(vocab_file, special_tokens_in_text):
    """The characters that stand for special tokens inside cannot be smuggled in."""
    tokenizer = BertTokenizer(vocab_file, special_tokens_in_text=special_tokens_in_text)
    for character in "\ue000\ue001\ue002\ue003\ue004\ue005":
        assert tokens(tokenizer, f"the {character} cat") == ["the", "[UNK]", "cat"]
        assert tokens(tokenizer, f"the{character}") == ["[UNK]"]


@pytest.mark.parametrize("character", ["a", "ก", "é"])
def test_words_of_over_200_characters_are_unknown(tmp_path, character):
    write_vocab([*SPECIAL_TOKENS, character, f"##{character}", "b"], tmp_path / "vocab.txt")
    tokenizer = BertTokenizer(tmp_path / "vocab.txt", lower_case=False)
    ids = tokenizer.tokenize([f"b {character * 200} b", f"b {character * 201} b", "b"]).to_list()
    assert ids == [[7, 5, *[6] * 199, 7], [7, 1, 7], [7]]


@pytest.mark.parametrize("space", ["\xa0", "\u3000", "\u2003", "\u2028"])
def test_spaces_beyond_ascii_end_words(vocab_file, space):
    """As in text from the web with &nbsp; for every space, which once was one long word."""
    tokenizer = BertTokenizer(vocab_file)
    assert tokenizer.tokenize([f"the{space}cat{space}" * 60]).to_list() == [[5, 6] * 60]


def test_bytes_that_are_not_utf8_are_dropped(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    assert tokenizer.tokenize([b"c\xffat \xed\xa0\x80 dog"]).to_list() == [[6, 12]]


def test_empty_texts(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    assert tokenizer.tokenize(["", " \t\u200b"]).to_list() == [[], []]
    assert tokenizer([""], max_length=4)["input_ids"].numpy().tolist() == [[2, 3, 0, 0]]


def test_features_of_texts(vocab_file):
    features = BertTokenizer(vocab_file)(["The cat.", "a mat and a dog ran"], max_length=6)
    expected = {
        "input_ids": [[2, 5, 6, 15 + 5, 3, 0], [2, 9, 10, 11, 9, 3]],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [1] * 6],
        "token_type_ids": [[0] * 6, [0] * 6],
    }
    assert {name: value.numpy().tolist() for name, value in features.items()} == expected
    assert all(value.dtype == tf.int32 for value in features.values())


def test_features_of_pairs(vocab_file):
    features = BertTokenizer(vocab_file)(["the cat"], ["a dog ran"], max_length=10)
    expected = {
        "input_ids": [[2, 5, 6, 3, 9, 12, 13, 3, 0, 0]],
        "attention_mask": [[1] * 8 + [0] * 2],
        "token_type_ids": [[0] * 4 + [1] * 4 + [0] * 2],
    }
    assert {name: value.numpy().tolist() for name, value in features.items()} == expected


def test_features_inside_tf_data(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    firsts, seconds = ["the cat", "", "a dog ran", "mat"], ["a mat", "run", "", "the dog sat on"]
    dataset = tf.data.Dataset.from_tensor_slices((firsts, seconds)).batch(4, drop_remainder=True)
    (found,) = dataset.map(lambda a, b: tokenizer(a, b, max_length=7))
    for name, value in tokenizer(firsts, seconds, max_length=7).items():
        assert found[name].shape == (4, 7) and found[name].dtype == tf.int32
        assert found[name].numpy().tolist() == value.numpy().tolist()


def test_a_single_text_is_a_batch_of_one(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    for text, pair in (("the cat", None), (tf.constant("the cat"), "a dog")):
        one = tokenizer(text, pair, max_length=8)
        batch = tokenizer(["the cat"], pair and [pair], max_length=8)
        for name, value in batch.items():
            np.testing.assert_array_equal(one[name], value)
    assert tokenizer.tokenize("the cat").to_list() == [[5, 6]]
    assert [x.to_list() for x in tokenizer.tokenize_with_offsets("the cat")] == [
        *([[5, 6]], [[0, 4]], [[3, 7]])
    ]


def test_padding_to_the_longest_row(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    features = tokenizer(["the cat", "a"], max_length=8, padding="longest")
    assert features["input_ids"].numpy().tolist() == [[2, 5, 6, 3], [2, 9, 3, 0]]
    assert features["attention_mask"].numpy().tolist() == [[1] * 4, [1, 1, 1, 0]]
    assert tokenizer(["the cat"] * 2, max_length=3, padding="longest")["input_ids"].shape == (2, 3)
    with pytest.raises(UserError, match="padding must be one of max_length, longest; got True"):
        tokenizer(["a"], padding=True)


def test_ids_to_text(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    texts = ["The unwanted cat ran.", "a dog"]
    features = tokenizer(texts, max_length=9)
    decoded = ["the unwanted cat ran .", "a dog"]
    assert tokenizer.decode(features["input_ids"], skip_special_tokens=True) == decoded
    assert tokenizer.decode(features["input_ids"][1]) == "[CLS] a dog" + " [SEP]" + " [PAD]" * 5
    assert tokenizer.decode(tokenizer.tokenize(texts)) == decoded
    assert tokenizer.decode([[5, 6], [9]]) == ["the cat", "a"] and tokenizer.decode([]) == ""
    assert tokenizer.id_to_token(6) == "cat" and tokenizer.token_to_id("##ed") == 16
    with pytest.raises(UserError, match=r"ids are 0 to 24; got 25\."):
        tokenizer.decode([5, 25])
    with pytest.raises(UserError, match=r"ids are 0 to 24; got -1\."):
        tokenizer.id_to_token(-1)
    with pytest.raises(UserError, match="the vocabulary has no entry 'unwanted'"):
        tokenizer.token_to_id("unwanted")


@pytest.mark.parametrize("ids", ["the cat", "12", 5, np.int32(5), ["the"], [5.5], None])
def test_what_is_no_list_of_ids_is_an_error(vocab_file, ids):
    with pytest.raises(UserError, match="ids must be a list of ids, or a list of such lists; got "):
        BertTokenizer(vocab_file).decode(ids)


def test_a_str_is_one_text(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    assert tokenizer.tokenize("the cat").to_list() == [[5, 6]]
    alone, pair = tokenizer("the cat", max_length=4), tokenizer("the", "cat", max_length=5)
    assert tokenizer.decode(alone["input_ids"]) == ["[CLS] the cat [SEP]"]
    assert tokenizer.decode(pair["input_ids"]) == ["[CLS] the [SEP] cat [SEP]"]
    with pytest.raises(
        UserError, match="the two segments must have the same number of rows; got 2 and 1"
    ):
        tokenizer(["the", "a"], "cat")


@pytest.mark.parametrize("texts", [5, None, [5], ["a", None], [["a"]], np.array([1])])
def test_what_is_no_text_is_an_error(vocab_file, texts):
    with pytest.raises(UserError, match="texts must be a str or a list of str; got "):
        BertTokenizer(vocab_file)(texts)


def test_more_than_two_segments_are_an_error(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    segment = tokenizer.tokenize(["the cat"])
    for segments in ([], [segment] * 3):
        with pytest.raises(UserError, match=f"one segment, or two .*; got {len(segments)}. Join"):
            tokenizer.pack(segments, 16)


def truncate_seq_pair(a, b, room):
    """google-research/bert's _truncate_seq_pair, as a loop."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


def test_pairs_are_cut_as_google_cuts_them(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    generator = random.Random(0)
    words = ["cat", "dog", "mat", "ran"]
    for max_length in (5, 6, 9, 16, 23):
        firsts, seconds = (
            [" ".join(generator.choices(words, k=generator.randrange(14))) for _ in range(200)]
            for _ in range(2)
        )
        features = tokenizer(firsts, seconds, max_length=max_length)
        found = features["input_ids"].numpy().tolist()
        for first, second, row in zip(firsts, seconds, found, strict=True):
            a, b = truncate_seq_pair(first.split(), second.split(), max_length - 3)
            ids = [tokenizer.vocab.index(t) for t in ["[CLS]", *a, "[SEP]", *b, "[SEP]"]]
            assert row == ids + [0] * (max_length - len(ids))


def test_lengths_that_leave_no_room(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    with pytest.raises(UserError, match="max_length must be at least 3; got 2"):
        tokenizer(["a"], max_length=2)
    with pytest.raises(UserError, match="max_length must be at least 5; got 4"):
        tokenizer(["a"], ["a"], max_length=4)


def test_vocabulary_with_the_reserved_characters(tmp_path):
    write_vocab([*SPECIAL_TOKENS, "\ue002"], tmp_path / "vocab.txt")
    with pytest.raises(UserError, match=r"reserves the private-use characters from U\+E000 on"):
        BertTokenizer(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match=r"the vocabulary given has the entries"):
        BertTokenizer([*SPECIAL_TOKENS, "\ue002"])


def test_vocabulary_that_the_library_cannot_take(tmp_path):
    write_vocab([*SPECIAL_TOKENS, "the", "##s\x00un", "##want"], tmp_path / "vocab.txt")
    with pytest.raises(UserError, match=r"vocab.txt cannot be used: Cannot traverse .*token ID 6"):
        BertTokenizer(tmp_path / "vocab.txt")


def test_folder_round_trip(vocab_file, tmp_path):
    tokenizer = BertTokenizer(vocab_file, lower_case=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    again = BertTokenizer.from_pretrained(folder, special_tokens_in_text=True)
    assert again.fingerprint == tokenizer.fingerprint and again.special_tokens_in_text
