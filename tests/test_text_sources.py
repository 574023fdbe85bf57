"""Reading text: inputs, pieces, lines, sentences."""

import gzip
import json
import os
import random

import pytest
import tensorflow as tf

from kbert.corpus import text_formats
from kbert.corpus.text_sources import (
    TextPiece,
    Texts,
    find_inputs,
    read_lines,
    split_into_pieces,
    split_sentences,
)
from kbert.errors import UserError

pytestmark = pytest.mark.smoke


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat .\na dog ran !\n\nthe mat\n")
    return path


def test_inputs_are_sorted_within_each_glob(tmp_path):
    for name in ("b.txt", "a.txt", "c.gz"):
        (tmp_path / name).touch()
    found = find_inputs(f"{tmp_path}/*.gz, {tmp_path}/*.txt,")
    assert [os.path.basename(path) for path in found] == ["c.gz", "a.txt", "b.txt"]


def test_pieces_of_inputs(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"x" * 99, mtime=0))
    paths = [*(str(tmp_path / name) for name in ("a.txt", "b.txt", "c.txt.gz")), "tfds:d"]
    pieces = split_into_pieces(paths, piece_bytes=30)
    a, b, c, d = paths
    assert [(p.path, p.begin, p.end, p.size) for p in pieces[:3]] == [
        (a, 0, 33, 33),
        (a, 33, 66, 33),
        (a, 66, None, 34),
    ]
    assert [(p.path, p.begin, p.end) for p in pieces[3:]] == [(x, 0, None) for x in (b, c, d)]
    assert [p.size for p in pieces[3:5]] == [0, (tmp_path / "c.txt.gz").stat().st_size]


def test_several_inputs_and_the_sample():
    assert [os.path.basename(path) for path in find_inputs("sample:heldout, tfds:x")] == [
        "heldout.txt.gz",
        "tfds:x",
    ]


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


def test_long_lines_are_cut_without_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(text_formats, "LONGEST_LINE_BYTES", 50)
    generator = random.Random(2)
    for letters, spaces in (("abcdef", True), ("abcdef", False), ("天气很好今é𠀀", False)):
        for size in (49, 50, 51, 99, 333):
            line = "".join(generator.choices(letters + (" " if spaces else ""), k=size)).strip()
            (tmp_path / "t.txt").write_text(line + "\n\nnext", encoding="utf-8")
            lines = list(read_lines(TextPiece(str(tmp_path / "t.txt"))))
            parts = [part.decode("utf-8") for part in lines[: lines.index(b"")]]
            assert "".join(parts).replace(" ", "") == line.replace(" ", "")
            assert [part for part in lines if part][-1] == b"next"
            if spaces:  # cut between words, so no word is made or broken
                assert " ".join(parts).split() == line.split()


def test_pieces_of_text_with_long_lines_and_white_space(tmp_path, monkeypatch):
    """A line that is cut, one with a long indent and an empty one of many spaces: no other ends."""
    monkeypatch.setattr(text_formats, "LONGEST_LINE_BYTES", 16)
    generator = random.Random(3)
    path = tmp_path / "text.txt"
    sizes = [0, 1, 11, 12, 13, 27, 28, 29, 44]  # with "d0s0", around multiples of 16
    indents = ["", " ", "\t", " " * 20, "\t" * 18]
    ends = ["\n\n", "\r\n\r\n", "\n \n", "\n" + " " * 40 + "\n", "\n\n\t\t\n" + "\t" * 33 + "\n"]
    for letters in ("abc", "ab ", "a天é𠀀") * 6:
        text, documents = "", []
        for i in range(5):
            lines = [
                f"d{i}s{j}" + "".join(generator.choices(letters, k=generator.choice(sizes)))
                for j in range(generator.randrange(1, 4))
            ]
            text += "\n".join(generator.choice(indents) + line for line in lines)
            text += generator.choice(ends)
            documents.append("".join(lines).replace(" ", ""))
        path.write_bytes(text.encode())
        for piece_bytes in range(3, 90, 6):
            pieces = split_into_pieces([str(path)], piece_bytes)
            found = [d for piece in pieces for d in documents_of(read_lines(piece))]
            assert ["".join(d).replace(" ", "") for d in found] == documents, (text, piece_bytes)


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


def test_texts_have_no_bad_bytes(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"a\n" * 9 + b"c\xffat \xe5\xa4\xa9\n")
    assert list(Texts([str(tmp_path / "text.txt")])) == ["a"] * 9 + ["c\ufffdat 天", ""]


def test_a_document_of_json_lines(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": " a \n\n\tb\r\n c\ud800 天"}) + "\n")
    lines = list(read_lines(TextPiece(str(tmp_path / "t.jsonl"))))
    assert lines == [b"a", b"b", "c? 天".encode(), b""]


@pytest.mark.parametrize("row", ["[1]", "null", '"text"', '{"text": "a"', '{"text": ' + "[" * 9999])
@pytest.mark.parametrize("begin", [0, 4])
def test_bad_json_lines(tmp_path, row, begin):
    """A piece other than the first does not know the number of its lines in the file."""
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n' + row)
    where = "line 2 after byte 4" if begin else "line 3"
    with pytest.raises(UserError, match=rf"t\.jsonl, {where}: every line must be a JSON object"):
        list(read_lines(TextPiece(str(tmp_path / "t.jsonl"), begin)))


def test_bad_json_lines_may_be_left_out(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n[1]\n\n{"text": "b"}\n{"txt": "c"}')
    skipped = []
    for begin in (0, 4):
        lines = list(read_lines(TextPiece(str(tmp_path / "t.jsonl"), begin), skipped.append))
        assert lines == [b"a", b"", b"b", b""][begin // 2 :]
    name = str(tmp_path / "t.jsonl")
    assert skipped == [
        f"{name}, line 2",
        f"{name}, line 5",
        f"{name}, line 1 after byte 4",
        f"{name}, line 4 after byte 4",
    ]
    assert list(Texts([name], skip_bad_lines=True)) == ["a", "", "b", ""]
    with pytest.raises(
        UserError, match=r"line 2: every line .* skip such lines with --skip_bad_lines\.$"
    ):
        list(Texts([name]))


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.txt: No such file or directory\."):
        list(read_lines(TextPiece(str(tmp_path / "none.txt"))))


def test_empty_inputs():
    with pytest.raises(UserError, match=r"input is empty; give a file, a glob"):
        find_inputs(" , ")


def test_tfds_errors(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(tfds, "load", fail)  # some of its errors have no text
    with pytest.raises(UserError, match=r"cannot load tfds:x: AssertionError"):
        list(read_lines(TextPiece("tfds:x")))
    monkeypatch.setattr(tfds, "load", lambda *args, **kwargs: tfds_of({"label": [1]}))
    with pytest.raises(UserError, match=r"tfds:x has no feature 'text'; it has .*'label'"):
        list(read_lines(TextPiece("tfds:x")))


def tfds_of(features):
    return tf.data.Dataset.from_tensor_slices(features)
