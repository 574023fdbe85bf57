"""Duplicates of documents left out, by the local runner."""

import json
import random

import numpy as np
import pytest

from kbert.corpus import Corpus, deduplication, local_runner, preparation, prepare, shard_builder
from kbert.corpus.deduplication import document_digest, find_duplicates, read_documents
from kbert.corpus.text_sources import split_into_pieces
from kbert.errors import UserError

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran"]


@pytest.fixture
def text(tmp_path):
    """Glob of three files with 90 documents, of which 73 differ."""
    generator = random.Random(5)
    for name in ("c", "a", "b"):
        documents = []
        for _ in range(30):
            sizes = generator.choices([1, 1, 1, 2, 3], k=generator.choice([1, 1, 2, 5]))
            documents.append("\n".join(" ".join(generator.choices(WORDS, k=k)) for k in sizes))
        (tmp_path / f"{name}.text").write_text("\n\n".join(documents) + "\n")
    return f"{tmp_path}/*.text"


def documents_of(corpus):
    """The documents as tuples of sentences, which are tuples of ids."""
    return [
        tuple(tuple(part) for part in map(np.ndarray.tolist, np.split(ids, np.cumsum(sizes)[:-1])))
        for shard in corpus.shards
        for _, ids, sizes in read_documents(shard)
    ]


def small_parts(monkeypatch, tokens):
    """Pieces of 200 bytes, batches of 3 documents or so, shards of `tokens`."""
    monkeypatch.setattr(
        preparation, "split_into_pieces", lambda paths: split_into_pieces(paths, 200)
    )
    monkeypatch.setattr(shard_builder, "BATCH_BYTES", 40)
    monkeypatch.setattr(deduplication, "_BATCH_TOKENS", 9)
    monkeypatch.setattr(deduplication, "SHARD_TOKENS", tokens)


def test_the_first_of_equal_documents_stays(tmp_path, vocab_file, text, monkeypatch):
    small_parts(monkeypatch, tokens=25)
    plain = documents_of(prepare(text, tmp_path / "plain", vocab_file))
    found = prepare(text, tmp_path / "found", vocab_file, deduplicate=True)
    assert documents_of(found) == list(dict.fromkeys(plain)) != plain
    assert found.manifest["removed_duplicates"] == len(plain) - len(set(plain)) == 17
    assert found.manifest["documents"] + found.manifest["removed_duplicates"] == len(plain) == 90
    names = [shard["name"] for shard in found.manifest["shards"]]
    assert names[:3] == ["00000", "00000-1", "00001"]  # a piece may make several shards
    ids = [i for document in documents_of(found) for sentence in document for i in sentence]
    np.testing.assert_array_equal(
        np.load(tmp_path / "found/unigrams.npy"), np.bincount(ids, minlength=25)
    )
    assert documents_of(Corpus(tmp_path / "found")) == documents_of(found)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a.text", "b.text", "c.text", "found", "plain", "vocab.txt"]
    assert not list((tmp_path / "found").glob(".*"))


def test_what_equal_means(tmp_path, vocab_file):
    """What the model sees: ids and sentences, not case, accents, spaces or what has no token."""
    same = ["The  cat\na dog", "the cat \n\u200b\na dog", "thé CAT\n a dog"]
    others = ["the cat a dog", "the cat\na\ndog", "a dog\nthe cat", "the cat"]
    (tmp_path / "t.txt").write_text("\n\n".join([*same, *others, others[0]]))
    found = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", vocab_file, deduplicate=True)
    assert [len(document) for document in documents_of(found)] == [2, 1, 3, 2, 1]
    assert found.manifest["removed_duplicates"] == 3


@pytest.mark.slow
def test_processes_do_not_change_the_result(tmp_path, vocab_file, text, monkeypatch):
    options = {"deduplicate": True}
    one = prepare(text, tmp_path / "one", vocab_file, processes=1, **options)
    monkeypatch.setattr(local_runner, "_SMALL_BYTES", 0)
    report = []
    prepare(text, tmp_path / "two", vocab_file, processes=2, report=report.append, **options)
    for path in one.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert "duplicates" in report[-2] and report[-1] == "deduplicated 3 of 3 shards"


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_of_digests(seed):
    generator = np.random.default_rng(seed)
    found = generator.integers(0, 2, (300, 16), np.uint8)
    found[:, 2:-1] = 0  # both halves matter
    expected, seen = [], set()
    for row in found.tolist():
        expected.append(tuple(row) in seen)
        seen.add(tuple(row))
    assert find_duplicates(found).tolist() == expected
    assert find_duplicates(found[:0]).tolist() == []


def test_digests_of_the_same_ids_in_other_dtypes():
    ids = [5, 6, 7]
    same = {document_digest(np.array(ids, d), np.array([2, 1])) for d in ("<u2", "<i4", "<i8")}
    assert len(same) == 1 and len(same.pop()) == 16
    others = [([5, 6, 7], [1, 2]), ([5, 6], [2]), ([5, 6, 7], [3]), ([6, 5, 7], [2, 1])]
    assert (
        len({document_digest(np.array(a), np.array(b)) for a, b in [(ids, [2, 1]), *others]}) == 5
    )


def test_a_document_that_is_all_there_is(tmp_path, vocab_file):
    (tmp_path / "t.txt").write_text("the cat\n\nThe cat\n\nthe  cat")
    with pytest.raises(UserError, match=r"is a single document, and 2 duplicates of it"):
        prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", vocab_file, deduplicate=True)
    accepted = prepare(
        *(str(tmp_path / "t.txt"), tmp_path / "one", vocab_file),
        **{"deduplicate": True, "single_document": True},
    )
    assert accepted.documents == 1
    (tmp_path / "t.txt").write_text("\u200b")
    with pytest.raises(UserError, match=r"contains no text"):
        prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", vocab_file, deduplicate=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "t.txt", "vocab.txt"]


def test_the_manifest_tells_what_was_asked_for(tmp_path, vocab_file, text):
    assert prepare(text, tmp_path / "plain", vocab_file).manifest["deduplicate"] is False
    prepare(text, tmp_path / "other", vocab_file, deduplicate=True)
    assert json.loads((tmp_path / "other/corpus.json").read_text())["deduplicate"] is True
