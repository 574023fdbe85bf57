"""Text to a prepared corpus, and opening it again."""

import gzip
import json
import os
import random

import numpy as np
import pytest
import tensorflow as tf

from kbert.data import BertTokenizer, Corpus, corpus, preparation, prepare
from kbert.data.corpus import (
    Piece,
    Texts,
    find_inputs,
    read_lines,
    split_into_pieces,
    split_sentences,
)
from kbert.data.store import ShardWriter, ids_dtype
from kbert.data.vocab import SPECIAL_TOKENS, write_vocab
from kbert.errors import UserError

DOCUMENTS = [["the cat sat .", "a dog ran !"], ["the mat"], ["on a mat", "the dog", "sat ."]]
IDS = [[5, 6, 7, 20], [9, 12, 13, 21], [5, 10], [8, 9, 10], [5, 12], [7, 20]]


def text_of(documents):
    return "\n\n".join("\n".join(lines) for lines in documents) + "\n"


def assert_holds_documents(found):
    assert (found.documents, len(found.shards[0].sentences)) == (3, 6)
    assert found.read(0, found.tokens).tolist() == [i for ids in IDS for i in ids]
    assert found.document_starts.tolist() == [0, 8, 10, 17]
    assert found.shards[0].sentences.tolist() == [0, 4, 8, 10, 13, 15]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(text_of(DOCUMENTS))
    return path


def test_plain_text(tmp_path, vocab_file, text):
    found = prepare(str(text), tmp_path / "corpus", vocab_file)
    assert_holds_documents(found)
    expected = {"documents": 3, "sentences": 6, "tokens": 17, "lines": 6, "lines_with_bad_utf8": 0}
    assert {name: found.manifest[name] for name in expected} == expected
    assert_holds_documents(Corpus(tmp_path / "corpus"))


def test_other_line_ends_and_empty_lines(tmp_path, vocab_file):
    path = tmp_path / "text.txt"
    path.write_bytes(
        b"\r\n\r\n" + text_of(DOCUMENTS).replace("\n", " \r\n").encode()[:-3] + b"\n\n"
    )
    assert_holds_documents(prepare(str(path), tmp_path / "corpus", vocab_file))


def test_gzip(tmp_path, vocab_file):
    with gzip.open(tmp_path / "text.txt.gz", "wt") as file:
        file.write(text_of(DOCUMENTS))
    assert_holds_documents(prepare(f"{tmp_path}/*.gz", tmp_path / "corpus", vocab_file))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines(tmp_path, vocab_file, suffix):
    path = tmp_path / f"text{suffix}"
    opener = gzip.open if suffix.endswith("gz") else open
    with opener(path, "wt") as file:
        for lines in DOCUMENTS:
            file.write(json.dumps({"id": 1, "text": "\n".join(lines)}) + "\n\n")
    assert_holds_documents(prepare(str(path), tmp_path / "corpus", vocab_file))


def test_tfds(tmp_path, vocab_file):
    """A dataset built here, found by its name as any other."""
    tfds = pytest.importorskip("tensorflow_datasets")

    texts = ["\n".join(lines) for lines in DOCUMENTS]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="kbert_test_text",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices({"text": texts})},
        data_dir=tmp_path / "tfds",
        disable_shuffling=True,
    )
    tfds.core.add_data_dir(tmp_path / "tfds")
    found = prepare("tfds:kbert_test_text", tmp_path / "corpus", vocab_file)
    assert found.documents == 3 and found.tokens == 17
    with pytest.raises(UserError, match=r"cannot load tfds:kbert_no_such"):
        prepare("tfds:kbert_no_such", tmp_path / "other", vocab_file)


def test_several_inputs_and_the_sample():
    assert [os.path.basename(path) for path in find_inputs("sample:heldout, tfds:x")] == [
        "heldout.txt.gz",
        "tfds:x",
    ]


def test_documents_that_tokenise_to_nothing(tmp_path, vocab_file):
    path = tmp_path / "text.txt"
    path.write_text(text_of([["\u200b", "the cat"], ["\u200b"], ["\ufeff", "a dog", "\u00ad"]]))
    found = prepare(str(path), tmp_path / "corpus", vocab_file)
    assert found.document_starts.tolist() == [0, 2, 4]
    assert found.shards[0].sentences.tolist() == [0, 2]


def test_documents_that_a_batch_cuts(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setattr(preparation, "BATCH_BYTES", 1)
    assert_holds_documents(prepare(str(text), tmp_path / "corpus", vocab_file))


def documents_of(lines):
    documents, open_document = [], []
    for line in lines:
        if line:
            open_document.append(line.decode())
        elif open_document:
            documents.append(open_document)
            open_document = []
    assert not open_document
    return documents


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_document_is_in_one_piece_wherever_pieces_are_cut(tmp_path, line_end):
    generator = random.Random(0)
    documents = [
        [f"d{i}s{j}" + "x" * generator.randrange(9) for j in range(generator.randrange(1, 5))]
        for i in range(12)
    ]
    text = "\n\n".join("\n".join(lines) for lines in documents) + "\n" * generator.randrange(3)
    path = tmp_path / "text.txt"
    path.write_bytes(text.replace("\n", line_end).encode())
    rows = tmp_path / "text.jsonl"
    rows.write_text("".join(json.dumps({"text": "\n".join(lines)}) + "\n" for lines in documents))
    for file in (path, rows):
        for piece_bytes in range(3, 120):
            pieces = split_into_pieces([str(file)], piece_bytes)
            found = [d for piece in pieces for d in documents_of(read_lines(piece))]
            assert found == documents, (file, piece_bytes)


def test_processes_do_not_change_the_result(tmp_path, vocab_file, monkeypatch):
    generator = random.Random(1)
    documents = [
        [" ".join(generator.choices(["the", "cat", "sat", "mat"], k=5)) for _ in range(4)]
        for _ in range(60)
    ]
    for i in range(3):
        (tmp_path / f"{i}.text").write_text(text_of(documents[i * 20 : i * 20 + 20]))
    monkeypatch.setattr(preparation, "_SMALL_BYTES", 0)
    found = [
        prepare(f"{tmp_path}/*.text", tmp_path / f"corpus{n}", vocab_file, processes=n)
        for n in (1, 2)
    ]
    assert found[0].manifest == found[1].manifest
    assert found[0].documents == 60 and len(found[0].shards) == 3


def kill_this_process(task):
    os.kill(os.getpid(), 9)


def test_a_killed_worker_is_reported(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setattr(preparation, "_SMALL_BYTES", 0)
    monkeypatch.setattr(preparation, "_work", kill_this_process)
    with pytest.raises(UserError, match=r"a worker process was killed.*--processes=1"):
        prepare(f"{text},{text}", tmp_path / "corpus", vocab_file, processes=2)
    assert not (tmp_path / "corpus").exists()


def test_long_lines_are_cut_without_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST_LINE_BYTES", 50)
    generator = random.Random(2)
    for letters, spaces in (("abcdef", True), ("abcdef", False), ("天气很好今é𠀀", False)):
        for size in (49, 50, 51, 99, 333):
            line = "".join(generator.choices(letters + (" " if spaces else ""), k=size)).strip()
            (tmp_path / "t.txt").write_text(line + "\n\nnext", encoding="utf-8")
            lines = list(read_lines(Piece(str(tmp_path / "t.txt"))))
            parts = [part.decode("utf-8") for part in lines[: lines.index(b"")]]
            assert "".join(parts).replace(" ", "") == line.replace(" ", "")
            assert [part for part in lines if part][-1] == b"next"
            if spaces:  # cut between words, so no word is made or broken
                assert " ".join(parts).split() == line.split()


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        (
            "One came. Two went! Did three? Yes.",
            ["One came. ", "Two went! ", "Did three? ", "Yes."],
        ),
        ("Mr. Smith and J. K. Jones.", ["Mr. Smith and J. K. Jones."]),
        ("It was 2008. Then 3.5 more.", ["It was 2008. ", "Then 3.5 more."]),
        ('He said "go." "No," she said.', ['He said "go." ', '"No," she said.']),
        ("今天好。明天？「是！」他说。", ["今天好。", "明天？", "「是！」", "他说。"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences(line, sentences):
    assert split_sentences(line) == sentences


def test_texts_can_be_read_again(text):
    texts = Texts([str(text)])
    assert list(texts) == list(texts) and "a dog ran !" in list(texts)


def test_bad_utf8_is_counted(tmp_path, vocab_file):
    path = tmp_path / "text.txt"
    path.write_bytes(text_of(DOCUMENTS * 4).encode() + b"the c\xffat\n")
    found = prepare(str(path), tmp_path / "corpus", vocab_file)
    assert found.manifest["lines_with_bad_utf8"] == 1
    assert found.read(found.tokens - 2, found.tokens).tolist() == [5, 6]


def write(path, content):
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", r"holds no text"),
        ("t.txt", b"\n \n\n", r"holds no text"),
        ("t.txt", b"the cat\na dog\n", r"is a single document.*Put an empty line between"),
        ("t.txt", "caf\u00e9\n\n\u00e9t\u00e9\n".encode("latin-1"), r"2 of 2 lines .* iconv"),
        ("t.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r"t.jsonl, line 2: .*got '{\"txt\": \"b\"}'"),
        ("t.jsonl", b"not json\n", r"t.jsonl, line 1: every line must be a JSON object"),
        ("t.txt.gz", b"not gzip", r"cannot read .*t.txt.gz: Not a gzipped file"),
        ("t.txt.gz", gzip.compress(b"the cat\n\na dog" * 99)[:-9], r"cannot read .*t.txt.gz"),
    ],
)
def test_bad_text(tmp_path, vocab_file, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        prepare(path, tmp_path / "corpus", vocab_file)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "vocab.txt"])


def test_bad_arguments(tmp_path, vocab_file, text):
    with pytest.raises(UserError, match=r"no file matches '.*none\*'"):
        prepare(f"{tmp_path}/none*", tmp_path / "corpus", vocab_file)
    with pytest.raises(UserError, match=r"is a folder. Write .*/\*\.txt"):
        prepare(str(tmp_path), tmp_path / "corpus", vocab_file)
    with pytest.raises(UserError, match=r"exists and is not empty"):
        prepare(str(text), tmp_path, vocab_file)


def test_an_error_inside_leaves_nothing(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setattr(ShardWriter, "close", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(str(text), tmp_path / "corpus", vocab_file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt", "vocab.txt"]


@pytest.mark.parametrize("part", ["ids", "sentences", "documents"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_files_are_named(tmp_path, vocab_file, text, part, damage):
    prepare(str(text), tmp_path / "corpus", vocab_file)
    path = tmp_path / f"corpus/00000.{part}"
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[3] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(UserError, match=rf"00000.{part} is damaged: .*Prepare the text again"):
        Corpus(tmp_path / "corpus")
    if damage != "flip":
        with pytest.raises(UserError, match=rf"00000.{part} is damaged"):
            Corpus(tmp_path / "corpus", verify=False)


def test_folders_that_are_no_corpus(tmp_path):
    with pytest.raises(UserError, match=r"is not a prepared corpus: it has no corpus.json"):
        Corpus(tmp_path)
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(UserError, match=r"corpus.json is damaged"):
        Corpus(tmp_path)
    (tmp_path / "corpus.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match=r"is not of the format 'kbert corpus 1'"):
        Corpus(tmp_path)


def test_another_vocabulary_is_refused(tmp_path, vocab_file, text):
    found = prepare(str(text), tmp_path / "corpus", vocab_file)
    found.check_tokenizer(BertTokenizer(vocab_file))
    with pytest.raises(UserError, match=r"prepared with another vocabulary \(25 entries"):
        found.check_tokenizer(BertTokenizer(vocab_file, lower_case=False))


def test_unigram_entropy(tmp_path, vocab_file, text):
    found = prepare(str(text), tmp_path / "corpus", vocab_file)
    ids = [i for ids in IDS for i in ids]
    shares = [ids.count(i) / len(ids) for i in set(ids)]
    assert found.unigram_entropy() == pytest.approx(-sum(p * np.log(p) for p in shares))


def test_ids_take_two_bytes_where_they_fit(tmp_path):
    assert [ids_dtype(size).itemsize for size in (65536, 65537)] == [2, 4]
    words = [f"w{i}" for i in range(65536 - 5)]
    write_vocab([*SPECIAL_TOKENS, *words, "last"], tmp_path / "vocab.txt")
    (tmp_path / "t.txt").write_text("last last\n\nlast")
    found = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", tmp_path / "vocab.txt")
    assert found.read(0, 2).tolist() == [65536, 65536]
