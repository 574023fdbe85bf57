"""Added tokens: the ids are HF's, from every file that HF writes them into, and in graphs."""

import json
import random

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
import transformers
from marks import slow

from kbert import BertTokenizer
from kbert.errors import UserError
from kbert.tokenizer.added_tokens import AddedToken
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = ["the", "cat", "sat", "un", "##want", "##ed", "new", "york", "[unused1]", "a", "##a", "s"]
WORDS += ["[", "]", "<", ">", "e", "##e", "1", "中", "文", "café", "cafe", ".", "x", "_", "url"]
ADDED = [
    AddedToken("[E1]", special=True),
    AddedToken("</e>", special=True),
    AddedToken("[E1", special=True),  # the longer one wins
    AddedToken("[unused1]", special=True),  # is in the vocabulary
    AddedToken("<e>", lstrip=True, rstrip=True, special=True),
    AddedToken("brandnew", normalized=True),
    AddedToken("New York", normalized=True),
    AddedToken("URL", single_word=True),
    AddedToken("Café", single_word=True, normalized=True),
    AddedToken("中a", normalized=True),
    AddedToken("ed", normalized=False),
]
FRAGMENTS = ["[E1]", "</e>", "[E1", "[unused1]", "<e>", "brandnew", "BrandNew", "new york"]
FRAGMENTS += [
    "New\nYork",
    "URL",
    "url",
    "café",
    "Café",
    "CAFE",
    "中a",
    "中",
    "ed",
    "unwanted",
    "the",
    "cat",
]
FRAGMENTS += [" ", " ", " ", "\t", ".", "_", "s", "a", "1", "É", "\u200b"]


def lines(count=200):
    rng = random.Random(4)
    return ["".join(rng.choices(FRAGMENTS, k=rng.randrange(12))) for _ in range(count)]


def hf_of(folder, lower_case=True, tokens=ADDED):
    write_vocab([*SPECIAL_TOKENS, *WORDS], folder / "vocab.txt")
    hf = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=lower_case)
    for token in tokens:
        added = tokenizers.AddedToken(**vars(token))
        hf.add_tokens([added], special_tokens=token.special)
    (folder / "vocab.txt").unlink()
    hf.save_pretrained(folder)
    return hf


def ids_of(tokenizer, texts):
    return tokenizer.tokenize(texts).to_list()


@pytest.mark.parametrize("lower_case", [True, *slow(False)])
def test_ids_are_those_of_hf(lower_case, tmp_path):
    hf, texts = hf_of(tmp_path, lower_case), lines()
    expected = hf(texts, add_special_tokens=False)["input_ids"]
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert len({id for row in expected for id in row} & {*range(32, 42)}) == 10  # all are found
    assert ids_of(tokenizer, texts) == expected
    assert tokenizer.vocab_size == len(hf) and tokenizer.lower_case is lower_case
    assert tokenizer.token_to_id("[E1]") == hf.convert_tokens_to_ids("[E1]") == 32
    rows = tf.data.Dataset.from_tensors(texts).map(tokenizer.tokenize)
    assert next(iter(rows)).to_list() == expected


@pytest.mark.parametrize("format", ["kbert", "hf", *slow("google", "keras_hub")])
def test_round_trips(format, tmp_path):
    hf, texts = hf_of(tmp_path), lines()
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "again").mkdir()
    tokenizer.save_pretrained(tmp_path / "again", format=format)
    again = BertTokenizer.from_pretrained(tmp_path / "again")
    assert again.settings == tokenizer.settings and again.vocab == tokenizer.vocab
    assert again.fingerprint == tokenizer.fingerprint
    plain = BertTokenizer(tokenizer.vocab)
    assert plain.fingerprint != tokenizer.fingerprint
    if format == "hf":
        hf_again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
        expected = hf(texts, add_special_tokens=False)["input_ids"]
        assert hf_again(texts, add_special_tokens=False)["input_ids"] == expected


def test_offsets_are_those_of_hf(tmp_path):
    """In bytes; HF's are in characters, and lstrip and rstrip tokens include white space."""
    tokens = [token for token in ADDED if not token.lstrip]
    texts = [text.replace("<e>", "") for text in lines(100)]
    hf = hf_of(tmp_path, tokens=tokens)(
        texts, add_special_tokens=False, return_offsets_mapping=True
    )
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    ids, starts, ends = (x.to_list() for x in tokenizer.tokenize_with_offsets(texts))
    assert ids == hf["input_ids"] == ids_of(tokenizer, texts)
    for text, begins, stops, spans in zip(texts, starts, ends, hf["offset_mapping"], strict=True):
        expected = [text[a:b] for a, b in spans]
        found = [text.encode()[a:b].decode() for a, b in zip(begins, stops, strict=True)]
        assert [x.strip("\u200b") for x in found] == [x.strip("\u200b") for x in expected], text


def test_older_files(tmp_path):
    """vocab.txt with added_tokens.json and special_tokens_map.json; ids of HF."""
    write_vocab([*SPECIAL_TOKENS, *WORDS], tmp_path / "vocab.txt")
    added = {"brandnew": 33, "[E1]": 32}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    special = {"additional_special_tokens": ["[E1]", "[unused1]"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.added_tokens == (
        AddedToken("[unused1]", special=True),
        AddedToken("[E1]", special=True),
        AddedToken("brandnew", normalized=True),
    )
    text = ["theBRANDNEW[E1]cat[unused1]"]
    assert tokenizer.decode(tokenizer.tokenize(text)) == ["the brandnew [E1] cat [unused1]"]


def test_decoder_of_the_config(tmp_path):
    write_vocab([*SPECIAL_TOKENS, *WORDS], tmp_path / "vocab.txt")
    decoder = {"32": {"content": "<e>", "special": True}, "4": {"content": "[MASK]"}}
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"do_lower_case": True, "added_tokens_decoder": decoder}))
    assert ids_of(BertTokenizer.from_pretrained(tmp_path), ["a<e>a[MASK]"])[0][:3] == [14, 32, 14]
    for decoder, message in (
        (
            {"34": {"content": "<e>"}},
            r"'<e>' has the id 34, but its position in the vocabulary is 32",
        ),
        ({"32": {"content": 7}}, r"content of an added token must be a string"),
        ({"32": {"content": "<e>", "lstrip": 1}}, r"single_word, .* must be true or false; got"),
        ({"32": {"content": " "}}, r"an added token must not be blank; got ' '"),
        ({"32": "<e>"}, r"tokenizer_config.json: expected a JSON object; got a value of type str"),
    ):
        path.write_text(json.dumps({"added_tokens_decoder": decoder}))
        with pytest.raises(UserError, match=message):
            BertTokenizer.from_pretrained(tmp_path)
    path.write_text(json.dumps({"additional_special_tokens": 7}))
    with pytest.raises(UserError, match=r"additional_special_tokens must be a list of tokens; got"):
        BertTokenizer.from_pretrained(tmp_path)
    path.write_text(json.dumps({"cls_token": "<s>"}))
    with pytest.raises(UserError, match=r"has cls_token '<s>'; kbert supports only BERT's \[CLS\]"):
        BertTokenizer.from_pretrained(tmp_path)


def test_given_tokens():
    vocab = [*SPECIAL_TOKENS, *WORDS, "<e>"]
    tokenizer = BertTokenizer(vocab, added_tokens=[AddedToken("<e>")])
    assert ids_of(tokenizer, ["a<e>a", "", "<e>"]) == [[14, 32, 14], [], [32]]
    assert tokenizer.tokenize(np.zeros(0, object)).shape[0] == 0
    with pytest.raises(UserError, match=r"the vocabulary given lacks the added tokens <f>"):
        BertTokenizer(vocab, added_tokens=[AddedToken("<f>")])
    stand_ins = ["\ue005<e>\ue005", "\ue006 a"]  # private-use characters of a user's text
    assert ids_of(tokenizer, stand_ins) == [[1, 32, 1], [1, 14]]
    masks = BertTokenizer(vocab, special_tokens_in_text=("[MASK]",), **tokenizer.settings)
    assert ids_of(masks, ["<e>[MASK]"]) == [[32, 4]]


@pytest.mark.slow
def test_exported_graphs(tmp_path):
    """The tokenizer in a SavedModel, and what TF Serving knows of its ops."""
    from exports import OPS_FILE, ops_of

    (tmp_path / "hf").mkdir()
    hf, texts = hf_of(tmp_path / "hf"), lines()
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "hf")
    root = tf.train.Checkpoint()
    root.tokenizer = tokenizer

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(text):
        return {"ids": tokenizer.tokenize(text).to_tensor(-1)}

    tf.saved_model.save(root, str(tmp_path / "to"), signatures=serve)
    loaded = tf.saved_model.load(str(tmp_path / "to"))
    found = loaded.signatures["serving_default"](text=tf.constant(texts))["ids"].numpy()
    expected = hf(texts, add_special_tokens=False)["input_ids"]
    assert [[id for id in row if id >= 0] for row in found.tolist()] == expected
    assert not ops_of(tmp_path / "to") - set(OPS_FILE.read_text().split())
