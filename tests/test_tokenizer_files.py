"""Tokenizers of folders that other codes wrote, against those codes."""

import itertools
import json
import shutil

import keras_hub
import pytest
import transformers
from marks import slow

from kbert import BertConfig, BertModel, BertTokenizer
from kbert.corpus import prepare
from kbert.errors import UserError
from kbert.tokenizer.files import read_tokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = [
    "the",
    "The",
    "café",
    "cafe",
    "Café",
    "中",
    "文",
    "中文",
    "##文",
    "un",
    "##want",
    "##ed",
    "über",
]
WORDS += ["uber", "Über", ",", ".", "!", "[unused0]", "##é", "##e", "##É", "c", "##a", "##f"]
TEXTS = ["The café, über Café!", "the unwanted 中文 the中文", "UNWANTED.", "Über THE", "中文中 文"]


@pytest.fixture
def folder(tmp_path):
    write_vocab([*SPECIAL_TOKENS, *WORDS], tmp_path / "vocab.txt")
    return tmp_path


def ids_of(tokenizer, texts):
    return tokenizer.tokenize(texts).to_list()


SETTINGS = list(itertools.product([True, False], [None, True, False], [True, False]))


@pytest.mark.parametrize(("lower_case", "strip_accents", "chinese"), SETTINGS)
def test_equals_hf_with_every_setting(lower_case, strip_accents, chinese, folder):
    """Both ways: HF's folder read by kbert, and kbert's written for HF."""
    hf = transformers.BertTokenizer(
        vocab=str(folder / "vocab.txt"),
        do_lower_case=lower_case,
        strip_accents=strip_accents,
        tokenize_chinese_chars=chinese,
    )
    expected = hf(TEXTS, add_special_tokens=False)["input_ids"]
    hf.save_pretrained(folder / "hf")
    assert not (folder / "hf/vocab.txt").exists()  # the vocabulary is in tokenizer.json
    tokenizer = BertTokenizer.from_pretrained(folder / "hf")
    assert ids_of(tokenizer, TEXTS) == expected
    (folder / "again").mkdir()
    tokenizer.save_pretrained(folder / "again", format="hf", max_length=77)
    for missing in ("nothing", "tokenizer.json", "vocab.txt"):
        if missing != "nothing":
            tokenizer.save_pretrained(folder / "again", format="hf", max_length=77)
            (folder / "again" / missing).unlink()
        again = transformers.AutoTokenizer.from_pretrained(folder / "again")
        assert again(TEXTS, add_special_tokens=False)["input_ids"] == expected
        assert (again.model_max_length, again.mask_token_id) == (77, 4)


def test_settings_change_ids(folder):
    found = {
        (tokenizer.fingerprint, str(ids_of(tokenizer, TEXTS)))
        for tokenizer in (
            BertTokenizer(folder / "vocab.txt", a, False, b, c) for a, b, c in SETTINGS
        )
    }
    assert len({fingerprint for fingerprint, _ in found}) == 8  # None is one of the other two
    assert len({ids for _, ids in found}) == 8
    usual = BertTokenizer(folder / "vocab.txt")
    stated = BertTokenizer(usual.vocab, strip_accents=True)
    assert usual.fingerprint == stated.fingerprint


def test_long_words_with_ideographs_inside(folder):
    """200 characters are a word, 201 are [UNK], whether ideographs are words or not."""
    tokenizer = BertTokenizer(folder / "vocab.txt", tokenize_chinese_chars=False)
    texts = ["中" + "文" * 199, "中" + "文" * 200, "the " + "文" * 300 + " the"]
    the, middle, piece = (tokenizer.vocab.index(word) for word in ("the", "中文", "##文"))
    assert ids_of(tokenizer, texts) == [[middle] + [piece] * 198, [1], [the, 1, the]]


@pytest.mark.parametrize("format", ["kbert", "google", "hf", "keras_hub"])
@pytest.mark.parametrize(
    ("lower_case", "strip_accents"), [(True, None), (False, True), (True, False)]
)
def test_round_trips(format, lower_case, strip_accents, folder):
    tokenizer = BertTokenizer(folder / "vocab.txt", lower_case, False, strip_accents, False)
    (folder / "new").mkdir()
    tokenizer.save_pretrained(folder / "new", format=format)
    again = BertTokenizer.from_pretrained(folder / "new")
    assert again.vocab == tokenizer.vocab and "[unused0]" in again.vocab
    assert again.settings == tokenizer.settings and again.fingerprint == tokenizer.fingerprint
    other = BertTokenizer.from_pretrained(folder / "new", lower_case=not lower_case)
    assert other.lower_case is other.strip_accents is not lower_case


@pytest.mark.parametrize("name", ["uncased", "cased", "chinese"])
def test_googles_vocabularies_show_their_casing(name, shared_data, tmp_path):
    shutil.copy(shared_data / f"vocab/bert-base-{name}-vocab.txt", tmp_path / "vocab.txt")
    assert BertTokenizer.from_pretrained(tmp_path).lower_case is (name != "cased")


@pytest.mark.parametrize("lower_case", [True, False])
def test_keras_hub(lower_case, folder):
    hub = keras_hub.models.BertTokenizer(
        vocabulary=str(folder / "vocab.txt"), lowercase=lower_case, strip_accents=lower_case
    )
    hub.save_to_preset(folder / "hub")
    tokenizer = BertTokenizer.from_pretrained(folder / "hub")
    expected = [list(map(int, row)) for row in hub(TEXTS)]
    assert ids_of(tokenizer, TEXTS) == expected
    (folder / "again").mkdir()
    tokenizer.save_pretrained(folder / "again", format="keras_hub")
    config = BertConfig.from_preset("tiny", vocab_size=40, hidden_act="gelu_new")
    BertModel(config).save_pretrained(folder / "again", format="keras_hub")
    again = keras_hub.models.Tokenizer.from_preset(str(folder / "again"))
    assert [list(map(int, row)) for row in again(TEXTS)] == expected


def test_keras_hub_lower_casing_strips_accents(folder):
    keras_hub.models.BertTokenizer(
        vocabulary=str(folder / "vocab.txt"), lowercase=True
    ).save_to_preset(folder / "hub")
    assert BertTokenizer.from_pretrained(folder / "hub").strip_accents


def test_words_of_100_to_200_letters_in_hf(folder):
    """HF's default makes [UNK] of words over 100 letters, BERT of those over 200."""
    tokenizer = BertTokenizer(folder / "vocab.txt")
    (folder / "hf").mkdir()
    tokenizer.save_pretrained(folder / "hf", format="hf")
    hf = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "hf/tokenizer.json"))
    texts = ["c" + "a" * 198 + "f", "c" + "a" * 199 + "f"]
    expected = ids_of(tokenizer, texts)
    assert [len(row) for row in expected] == [200, 1]
    assert hf(texts, add_special_tokens=False)["input_ids"] == expected


def hf_json(folder, **changes):
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "hf")
    path = folder / "hf/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "tokenizer.json",
            {"model": {"type": "BPE"}},
            r"a model of type BPE; .* supports only WordPiece",
        ),
        ("tokenizer.json", {"normalizer": "BertNormalizer"}, r"a normalizer of type None; "),
        ("tokenizer.json", {"model": "WordPiece"}, r"a model of type None; .*WordPiece"),
        ("tokenizer.json", {"normalizer": None}, r"a normalizer of type None; .*BertNormalizer"),
        (
            "tokenizer.json",
            {"pre_tokenizer": {"type": "Whitespace"}},
            r"pre_tokenizer of type Wh",
        ),
        (
            "tokenizer.json",
            {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 2}}},
            r"is not a WordPiece tokenizer.json .* prefix '##' and the ids 0, 1, 2",
        ),
        (
            "tokenizer.json",
            {"model": {"type": "WordPiece", "vocab": ["a"]}, "added_tokens": []},
            r"is not a WordPiece tokenizer.json .* prefix '##' and the ids 0, 1, 2",
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "BertJapaneseTokenizer"},
            r"is for the tokenizer class BertJapaneseTokenizer; kbert supports only BertTokenizer",
        ),
        ("tokenizer_config.json", {"do_basic_tokenize": False}, r"has do_basic_tokenize false; "),
        (
            "tokenizer_config.json",
            {"do_lower_case": "yes"},
            r"tokenizer_config.json: do_lower_case must be true or false; got 'yes'",
        ),
    ],
)
def test_other_tokenizers_are_refused(file, changes, message, folder):
    hf_json(folder)
    path = folder / "hf" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        BertTokenizer.from_pretrained(folder / "hf")


def test_added_words_that_are_no_texts_are_refused(folder):
    hf_json(folder)
    path = folder / "hf/tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"] = [{"content": 7, "id": len(values["model"]["vocab"])}]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"has entries that are not valid UTF-8 strings"):
        BertTokenizer.from_pretrained(folder / "hf")


def test_folders_without_a_vocabulary(folder):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no vocabulary, neither vocab.txt nor tokenizer"):
        BertTokenizer.from_pretrained(folder / "empty")
    (folder / "empty/tokenizer.json").write_text(
        '{"class_name": "BertTokenizer", "config": {"lowercase": true}}'
    )
    with pytest.raises(UserError, match=r"cannot read .*vocabulary.txt"):
        BertTokenizer.from_pretrained(folder / "empty")
    (folder / "empty/tokenizer.json").write_text('{"class_name": "GPT2Tokenizer"}')
    with pytest.raises(
        UserError,
        match=r"is for the tokenizer class GPT2Tokenizer; kbert supports only BertTokenizer",
    ):
        BertTokenizer.from_pretrained(folder / "empty")
    with pytest.raises(UserError, match=r"format must be one of kbert, google, .*got 'x'"):
        BertTokenizer(folder / "vocab.txt").save_pretrained(folder, format="x")


@pytest.mark.parametrize("processes", [1, *slow(2)])
def test_a_corpus_keeps_the_settings(processes, folder, monkeypatch):
    monkeypatch.setattr("kbert.corpus.local_runner._SMALL_BYTES", 1)
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("\n".join(TEXTS) + "\n\n" + "\n".join(TEXTS))
    tokenizer = BertTokenizer(folder / "vocab.txt", True, False, False, False)
    corpus = prepare(f"{folder}/[ab].txt", folder / "corpus", tokenizer, processes=processes)
    corpus.check_tokenizer(tokenizer)
    assert read_tokenizer(folder / "corpus")[1] == tokenizer.settings
    expected = sum(len(row) for row in ids_of(tokenizer, TEXTS)) * 4
    assert corpus.manifest["tokens"] == expected
