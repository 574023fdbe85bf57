"""The prepared corpus on disk: writing shards, opening them, noticing damage."""

import json
import math
import os
import random
import re
import resource
import shutil

import numpy as np
import pytest

from kbert.corpus import Corpus, prepare
from kbert.corpus.corpus import corpus_fingerprint, write_manifest
from kbert.corpus.shards import ShardWriter, ids_dtype
from kbert.errors import UserError
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

pytestmark = pytest.mark.smoke


# Shards of documents of sentences of ids.
SHARDS = [[[[5, 6, 7, 20], [9, 12]], [[5, 10]]], [[[8, 9, 10], [5], [7, 20]]]]


def write_corpus(folder, vocab_file, shards, sentences_a_batch=2):
    """Writes what `prepare` would write for text of these ids."""
    folder.mkdir()
    tokenizer = BertTokenizer(vocab_file)
    entries, unigrams = [], np.zeros(tokenizer.vocab_size, np.int64)
    for number, documents in enumerate(shards):
        writer = ShardWriter(folder, f"{number:05d}", tokenizer.vocab_size)
        rows = [(ids, i == 0) for document in documents for i, ids in enumerate(document)]
        for i in range(0, len(rows), sentences_a_batch):
            batch = rows[i : i + sentences_a_batch]
            writer.write(
                np.array([token for ids, _ in batch for token in ids], np.int32),
                np.array([len(ids) for ids, _ in batch]),
                np.array([first for _, first in batch]),
            )
        entries.append(writer.close())
        unigrams += writer.unigrams
    shutil.copyfile(vocab_file, folder / "vocab.txt")
    write_manifest(folder, tokenizer, entries, unigrams)
    return Corpus(folder)


def starts_of(parts):
    """Place of the first token of each part, and the place after the last."""
    return np.cumsum([0, *map(len, parts)]).tolist()


def flat(parts):
    return [item for part in parts for item in part]


def test_round_trip(tmp_path, vocab_file):
    found = write_corpus(tmp_path / "corpus", vocab_file, SHARDS)
    assert (found.documents, found.tokens, len(found.shards)) == (3, 14, 2)
    assert found.document_starts.tolist() == [0, 6, 8, 14]
    assert found.shard_starts.tolist() == [0, 8, 14]
    assert [shard.sentences.tolist() for shard in found.shards] == [[0, 4, 6], [0, 3, 4]]
    assert found.read(4, 8).tolist() == [9, 12, 5, 10]
    assert found.read(9, 13).tolist() == [9, 10, 5, 7]
    assert found.read_all(np.array([[9, 13], [8, 8], [4, 8]])).tolist() == [
        9,
        10,
        5,
        7,
        9,
        12,
        5,
        10,
    ]
    assert isinstance(found.shards[1].ids, np.memmap)
    expected = {"documents": 3, "sentences": 6, "tokens": 14, "vocab_size": 25, "lower_case": True}
    assert {name: found.manifest[name] for name in expected} == expected


@pytest.mark.parametrize("seed", range(8))
def test_round_trip_with_sentences_and_documents_of_nothing(tmp_path, vocab_file, seed):
    generator = random.Random(seed)
    shards = []
    for _ in range(3):
        documents = [
            [generator.choices(range(5, 25), k=max(0, size)) for size in sizes]
            for sizes in (generator.choices(range(-4, 5), k=n) for n in range(1, 10))
        ]
        generator.shuffle(documents)
        shards.append([*documents, [[7, 8]]])
    found = write_corpus(tmp_path / "corpus", vocab_file, shards, generator.randrange(1, 12))
    ids = flat(flat(flat(shards)))
    assert found.tokens == len(ids) == sum(len(shard.ids) for shard in found.shards)
    documents = [flat(document) for document in flat(shards) if flat(document)]
    assert found.document_starts.tolist() == starts_of(documents)
    for document, a, b in zip(
        documents, found.document_starts, found.document_starts[1:], strict=False
    ):
        assert found.read(a, b).tolist() == document
    for shard, documents in zip(found.shards, shards, strict=True):
        sentences = [ids for ids in flat(documents) if ids]
        assert shard.sentences.tolist() == starts_of(sentences)[:-1]
    np.testing.assert_array_equal(
        np.load(tmp_path / "corpus/unigrams.npy"), [ids.count(i) for i in range(25)]
    )


@pytest.mark.parametrize(
    "name",
    [f"0000{i}.{part}" for i in range(2) for part in ("ids", "sentences", "documents")]
    + ["vocab.txt", "unigrams.npy"],
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_files_are_named(tmp_path, vocab_file, name, damage):
    write_corpus(tmp_path / "corpus", vocab_file, SHARDS)
    path = tmp_path / "corpus" / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[3] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    reason = {"flip": "its checksum", "truncate": "its checksum", "remove": "No such file"}[damage]
    message = rf"{re.escape(name)} is damaged: {reason}.*Prepare the text again"
    with pytest.raises(UserError, match=message):
        Corpus(tmp_path / "corpus")
    if name.startswith("0") and damage != "flip":  # the size is looked at all the same
        with pytest.raises(UserError, match=rf"{re.escape(name)} is damaged"):
            Corpus(tmp_path / "corpus", verify=False)


@pytest.mark.parametrize(
    "name", ["sha256", "vocab_size", "vocab_fingerprint", "lower_case", "shards"]
)
def test_a_manifest_that_lacks_something(tmp_path, vocab_file, name):
    write_corpus(tmp_path / "corpus", vocab_file, SHARDS)
    path = tmp_path / "corpus/corpus.json"
    values = json.loads(path.read_text())
    del values[name]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"corpus.json is damaged: it lacks '{name}'\. Prepare"):
        Corpus(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shards": [7]}, "'int' object is not subscriptable"),
        ({"shards": [{"name": "00000", "sha256": 3}]}, "'int' object is not subscriptable"),
        ({"sha256": ["vocab.txt"]}, "dictionary update sequence .*"),
        ({"sha256": {"a\x00": ""}}, "embedded null byte"),
    ],
)
def test_a_manifest_with_values_of_other_types(tmp_path, vocab_file, changes, reason):
    write_corpus(tmp_path / "corpus", vocab_file, SHARDS)
    path = tmp_path / "corpus/corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=rf"corpus.json is damaged: {reason}\. Prepare"):
        Corpus(tmp_path / "corpus")


def test_folders_that_are_no_corpus(tmp_path):
    with pytest.raises(UserError, match=r"is not a prepared corpus: it has no corpus.json"):
        Corpus(tmp_path)
    for text in ("{", "[" * 9999):
        (tmp_path / "corpus.json").write_text(text)
        with pytest.raises(UserError, match=r"corpus.json is damaged"):
            Corpus(tmp_path)
    (tmp_path / "corpus.json").write_text('{"format": "other"}')
    with pytest.raises(
        UserError, match=r"has the format 'other'; this version .* 'kbert corpus 1'"
    ):
        Corpus(tmp_path)


def test_another_vocabulary_is_refused(tmp_path, vocab_file):
    found = write_corpus(tmp_path / "corpus", vocab_file, SHARDS)
    found.check_tokenizer(BertTokenizer(vocab_file))
    with pytest.raises(
        UserError,
        match=r"prepared with another vocabulary or other tokenizer settings \(25 entries",
    ):
        found.check_tokenizer(BertTokenizer(vocab_file, lower_case=False))


def test_unigram_entropy(tmp_path, vocab_file):
    found = write_corpus(tmp_path / "corpus", vocab_file, SHARDS)
    ids = flat(flat(flat(SHARDS)))
    shares = [ids.count(i) / len(ids) for i in set(ids)]
    expected = -sum(p * math.log(p) for p in shares)
    assert found.unigram_entropy() == pytest.approx(expected, rel=1e-12)


def test_ids_take_two_bytes_where_they_fit(tmp_path):
    assert [ids_dtype(size).itemsize for size in (65536, 65537)] == [2, 4]
    words = [f"w{i}" for i in range(65536 - 5)]
    write_vocab([*SPECIAL_TOKENS, *words, "last"], tmp_path / "vocab.txt")
    (tmp_path / "t.txt").write_text("last last\n\nlast")
    found = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", tmp_path / "vocab.txt")
    assert found.read(0, 2).tolist() == [65536, 65536]


def test_more_files_than_the_shell_allows(tmp_path, vocab_file):
    """Each shard keeps three files open as long as it is mapped; the usual limit is 1,024."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 150, limits[1]))
    try:
        found = write_corpus(tmp_path / "corpus", vocab_file, SHARDS * 40)
        assert found.documents == 120 and len(found.shards) == 80
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 240
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_fingerprint_of_the_content(tmp_path, vocab_file):
    other = [*SHARDS[:1], [[[8, 9, 11], [5], [7, 20]]]]
    found = [
        corpus_fingerprint(write_corpus(tmp_path / f"corpus{i}", vocab_file, shards))
        for i, shards in enumerate((SHARDS, SHARDS, other))
    ]
    assert found[0] == found[1] != found[2]
