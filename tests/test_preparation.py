"""Text to a prepared corpus."""

import errno
import gzip
import json
import os
import random
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from warm_python import PYTHON

from kbert.corpus import Corpus, local_runner, preparation, prepare, shard_builder
from kbert.corpus.shards import ShardWriter
from kbert.corpus.text_sources import split_into_pieces
from kbert.errors import UserError
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

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
    part = prepare("tfds:kbert_test_text:train[:2]", tmp_path / "part", vocab_file)
    assert part.documents == 2 and part.tokens == 10
    with pytest.raises(UserError, match=r"cannot load tfds:kbert_no_such"):
        prepare("tfds:kbert_no_such", tmp_path / "other", vocab_file)


@pytest.mark.parametrize(("unit", "count"), [("cat ", 50_000), ("天", 60_000)])
def test_a_very_long_line_loses_nothing(tmp_path, unit, count):
    """200 kB in one line, with spaces and without; it is read in parts of 64 kB."""
    write_vocab([*SPECIAL_TOKENS, "cat", "##cat", "天", "end"], tmp_path / "vocab.txt")
    (tmp_path / "t.txt").write_text(unit * count + "\n\nend", encoding="utf-8")
    found = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", tmp_path / "vocab.txt")
    assert found.document_starts.tolist() == [0, count, count + 1]
    assert set(found.read(0, count).tolist()) == {5 if unit == "cat " else 7}


def test_paragraphs_are_split_into_sentences(tmp_path, vocab_file):
    (tmp_path / "t.txt").write_text("The cat sat. A dog ran! The mat\n\nThe mat, and a cat.\n")
    found = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", vocab_file)
    assert found.shards[0].sentences.tolist() == [0, 4, 8, 10]
    assert found.manifest["lines"] == 2 and found.manifest["sentences"] == 4


def test_documents_that_tokenise_to_nothing(tmp_path, vocab_file):
    path = tmp_path / "text.txt"
    path.write_text(text_of([["\u200b", "the cat"], ["\u200b"], ["\ufeff", "a dog", "\u00ad"]]))
    found = prepare(str(path), tmp_path / "corpus", vocab_file)
    assert found.document_starts.tolist() == [0, 2, 4]
    assert found.shards[0].sentences.tolist() == [0, 2]


def test_documents_that_a_batch_cuts(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setattr(shard_builder, "BATCH_BYTES", 1)
    assert_holds_documents(prepare(str(text), tmp_path / "corpus", vocab_file))


def test_processes_do_not_change_the_result(tmp_path, vocab_file, monkeypatch):
    """Nor do pieces, but for the names of the shards; and an empty file does no harm."""
    generator = random.Random(1)
    documents = [
        [" ".join(generator.choices(["the", "cat", "sat", "mat"], k=5)) for _ in range(4)]
        for _ in range(60)
    ]
    (tmp_path / "0.text").touch()
    for i in range(1, 4):
        (tmp_path / f"{i}.text").write_text(text_of(documents[i * 20 - 20 : i * 20]))
    whole = prepare(f"{tmp_path}/*.text", tmp_path / "whole", vocab_file)
    monkeypatch.setattr(local_runner, "_SMALL_BYTES", 0)
    monkeypatch.setattr(
        preparation, "split_into_pieces", lambda paths: split_into_pieces(paths, 300)
    )
    stopped_clock = types.SimpleNamespace(monotonic=lambda: 5.0)
    monkeypatch.setattr(local_runner, "time", stopped_clock)
    report = []
    found = [
        prepare(
            f"{tmp_path}/*.text",
            tmp_path / f"corpus{n}",
            vocab_file,
            processes=n,
            report=report.append,
        )
        for n in (1, 2)
    ]
    assert found[0].manifest == found[1].manifest
    assert found[0].documents == 60 and len(found[0].shards) > 12 and len(whole.shards) == 3
    ids = [np.concatenate([shard.ids for shard in c.shards]) for c in (whole, *found)]
    for other, c in zip(ids[1:], found, strict=True):
        np.testing.assert_array_equal(other, ids[0])
        np.testing.assert_array_equal(c.document_starts, whole.document_starts)
    assert all(line.startswith("prepared ") for line in report)
    assert report[-1].endswith("ETA 0 s")


def kill_this_process(task):
    os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_a_killed_worker_is_reported(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setattr(local_runner, "_SMALL_BYTES", 0)
    monkeypatch.setattr(local_runner, "_write_piece", kill_this_process)
    with pytest.raises(UserError, match=r"a worker process was killed.*--processes=1"):
        prepare(f"{text},{text}", tmp_path / "corpus", vocab_file, processes=2)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.slow
def test_an_error_in_a_worker_is_reported(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setattr(local_runner, "_SMALL_BYTES", 0)
    (tmp_path / "t.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"t\.jsonl, line 1: no key or column is"):
        prepare(f"{text},{tmp_path}/*.jsonl", tmp_path / "corpus", vocab_file, processes=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["t.jsonl", "text.txt", "vocab.txt"]


def test_bad_utf8_is_counted(tmp_path, vocab_file):
    path = tmp_path / "text.txt"
    path.write_bytes(text_of(DOCUMENTS * 4).encode() + b"the c\xffat\n")
    found = prepare(str(path), tmp_path / "corpus", vocab_file)
    assert found.manifest["lines_with_bad_utf8"] == 1
    assert found.read(found.tokens - 2, found.tokens).tolist() == [5, 6]


def test_bad_lines_may_be_skipped(tmp_path, vocab_file, monkeypatch):
    """They are counted, and the first ones named in the order of the input, whatever the pieces."""
    good, bad = json.dumps({"text": "the cat\na dog"}), json.dumps({"txt": "a mat"})
    (tmp_path / "b.jsonl").write_text("\n".join([bad, good, bad, good, bad]))
    (tmp_path / "a.jsonl").write_text("\n".join([good, bad, bad, good, "{", good]))
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 2: .*skip such lines with --skip_bad_lines"
    ):
        prepare(f"{tmp_path}/*.jsonl", tmp_path / "corpus", vocab_file)
    found = prepare(f"{tmp_path}/*.jsonl", tmp_path / "corpus", vocab_file, skip_bad_lines=True)
    assert (found.documents, found.tokens) == (5, 20)
    assert found.manifest["skipped_lines"] == 6
    lines = [f"{tmp_path}/a.jsonl, line {n}" for n in (2, 3, 5)]
    lines += [f"{tmp_path}/b.jsonl, line {n}" for n in (1, 3)]
    assert found.manifest["first_skipped_lines"] == lines
    monkeypatch.setattr(
        preparation, "split_into_pieces", lambda paths: split_into_pieces(paths, 60)
    )
    cut = prepare(f"{tmp_path}/*.jsonl", tmp_path / "cut", vocab_file, skip_bad_lines=True)
    assert len(cut.shards) > 3 and cut.tokens == 20 and cut.manifest["skipped_lines"] == 6
    assert [line.partition(", ")[0][-7:] for line in cut.manifest["first_skipped_lines"]] == [
        *["a.jsonl"] * 3,
        *["b.jsonl"] * 2,
    ]
    (tmp_path / "b.jsonl").write_text(bad)
    with pytest.raises(UserError, match=r"contains no text \(1 bad lines were skipped\)\."):
        prepare(f"{tmp_path}/b.jsonl", tmp_path / "other", vocab_file, skip_bad_lines=True)


def test_summary(tmp_path, vocab_file):
    """The block of figures that the program prints; a document without tokens has lines."""
    path = tmp_path / "text.jsonl"
    rows = [{"text": "\n".join(lines)} for lines in [*DOCUMENTS, DOCUMENTS[1], ["\u200b"]]] + [{}]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = prepare(
        str(path), tmp_path / "corpus", vocab_file, deduplicate=True, skip_bad_lines=True
    )
    assert "\n".join(preparation.summary(found.manifest)) == (
        "input files                                     1\n"
        "text                                       0.0 MB\n"
        "lines                                           8\n"
        "  with bytes that are not UTF-8                 0\n"
        "bad lines, skipped                              1\n"
        "documents without tokens, skipped               1\n"
        "duplicate documents, removed                    1\n"
        "documents                                       3\n"
        "sentences                                       6\n"
        "tokens                                         17\n"
        f"skipped: {path}, line 6"
    )
    assert found.manifest["bytes"] == sum(len(s) for d in DOCUMENTS for s in d) + 7 + 3
    plain = prepare(str(path), tmp_path / "plain", vocab_file, skip_bad_lines=True)
    assert not any("duplicate" in line for line in preparation.summary(plain.manifest))


@pytest.mark.smoke
def test_the_program(tmp_path, vocab_file, text):
    command = [PYTHON, "-m", "kbert.prepare", f"--input={text}", "--deduplicate"]
    command += [f"--vocab_file={vocab_file}", f"--output_dir={tmp_path}/corpus"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    manifest = json.loads((tmp_path / "corpus/corpus.json").read_text())
    for line in preparation.summary(manifest):
        assert f"{line}\n" in done.stdout
    assert f"use it: python -m kbert.pretrain --input={tmp_path}/corpus ..." in done.stdout
    assert manifest["deduplicate"] is True and manifest["tokens"] == 17


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "spark"}, r"runner must be one of local, beam; got 'spark'"),
        ({"skip_bad_lines": "fix"}, r"skip_bad_lines must be bool; got 'fix'"),
        ({"beam_options": "--runner=X"}, r"--beam_options requires --runner=beam"),
        (
            {"runner": "beam", "processes": 2},
            r"--processes requires --runner=local.*direct_num_work",
        ),
        ({"processes": 0}, r"processes must be >= 1"),
    ],
)
def test_bad_options(tmp_path, vocab_file, text, options, message):
    with pytest.raises(UserError, match=message):
        prepare(str(text), tmp_path / "corpus", vocab_file, **options)


def test_beam_that_is_not_installed(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs apache-beam: pip install 'kbert\[beam\]'"):
        prepare(str(text), tmp_path / "corpus", vocab_file, runner="beam")
    assert not (tmp_path / "corpus").exists()


def write(path, content):
    path.write_bytes(content)
    return str(path)


def damaged_gzip():
    words = random.Random(0).choices([b"the ", b"cat ", b"a ", b"dog ", b"\n"], k=5000)
    data = bytearray(gzip.compress(b"".join(words), mtime=0))
    data[200] ^= 0x55
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", r"contains no text"),
        ("t.txt", b"\n \n\n", r"contains no text"),
        ("t.txt", b"the cat\na dog\n", r"is a single document.*Separate documents by empty lines"),
        (
            "t.txt",
            "caf\u00e9\n\n\u00e9t\u00e9\n".encode("latin-1"),
            r"t.txt is not UTF-8; .* \(iconv -f CP1252 ",
        ),
        ("t.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r"t.jsonl, line 2: .*got 'txt'"),
        ("t.jsonl", b"not json\n", r"t.jsonl, line 1: every line must be a JSON object"),
        ("t.txt.gz", b"not gzip", r"cannot read .*t.txt.gz: it is not a file in gzip format"),
        ("t.txt.gz", gzip.compress(b"cat\n\ndog" * 99, mtime=0)[:-9], r"cannot read .*t.txt.gz"),
        ("t.txt.gz", damaged_gzip(), r"cannot read .*t.txt.gz: Error -3 while decompressing"),
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
    with pytest.raises(UserError, match=r"is a folder. Give its files: .*/\*\.txt"):
        prepare(str(tmp_path), tmp_path / "corpus", vocab_file)
    with pytest.raises(UserError, match=r"exists and is not empty"):
        prepare(str(text), tmp_path, vocab_file)


def test_an_error_inside_leaves_nothing(tmp_path, vocab_file, text, monkeypatch):
    monkeypatch.setattr(ShardWriter, "close", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(str(text), tmp_path / "corpus", vocab_file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt", "vocab.txt"]


@pytest.mark.parametrize(
    ("module", "part"), [(shard_builder, "ShardWriter"), (preparation, "write_manifest")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path, vocab_file, text, monkeypatch, module, part
):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, part, full)
    with pytest.raises(UserError) as caught:
        prepare(str(text), tmp_path / "corpus", vocab_file)
    assert str(caught.value) == (
        f"cannot write {tmp_path}/corpus: No space left on device. Fix this and run the same "
        f"command again."
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt", "vocab.txt"]


def test_the_folder_may_exist_and_be_empty(tmp_path, vocab_file, text):
    (tmp_path / "corpus").mkdir()
    assert_holds_documents(prepare(str(text), tmp_path / "corpus", vocab_file))
    assert_holds_documents(prepare(str(text), tmp_path / "new/folder/corpus", vocab_file))
    before = text.read_bytes()
    with pytest.raises(
        UserError, match=r"text\.txt is a file\. Remove it, or choose another folder"
    ):
        prepare(str(text), text, vocab_file)
    assert text.read_bytes() == before


def test_what_a_killed_process_left_is_removed(tmp_path, vocab_file, text):
    (tmp_path / ".corpus.partial").mkdir()
    (tmp_path / ".corpus.partial/00000.ids").touch()
    prepare(str(text), tmp_path / "corpus", vocab_file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "text.txt", "vocab.txt"]
