"""Properties of what is made of text, whatever characters come in it."""

import json
import pathlib
import tempfile
import types

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import fewer
from question_windows import question_windows
from test_offsets import check_words_alone

from kbert.corpus import local_runner, preparation, prepare, shard_builder
from kbert.corpus.text_sources import read_lines, split_into_pieces, split_sentences
from kbert.data.examples import Answer, QuestionExample
from kbert.errors import UserError
from kbert.tasks.examples import read_split
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS, check_vocab, read_vocab, write_vocab

WORDS = ["the", "cat", "##s", "un", "##want", "##ed", "cafe", "café", "##é", ".", ",", "#", "##"]
WORDS += ["天", "气", "\U0001f600", "\u1112", "##\u1161", "##\u11ab", "ς", "##σ", "א", "##ב", "a"]
WORDS += ["##a", "b", "##b", "1", "##1", "\u0e33", "e", "##\u0301", "ffi", "##ﬁ", "ß", "##ss"]
# Characters that are easily got wrong, and words of the vocabulary.
HARD = ("\u0301", "\u0323", "\u0e33", "\u200d", "\ufe0f", "\U0001f469\u200d\U0001f4bb", "\u00ad")
HARD += (
    "\u202e",
    "\u05d0\u05d1",
    "\u0645\u0631",
    "天气",
    "\u3000",
    "\u2028",
    "\x00",
    "\x1f",
    "\x85",
)
HARD += (
    "\ufffd",
    "\ue000",
    "\ue004",
    "\U000e0001",
    "각",
    "\u1112\u1161\u11ab",
    "İ",
    "ﬁ",
    "ẞ",
    "\u0345",
)
HARD += (
    "\t",
    "\n",
    "\r\n",
    " ",
    "café",
    "cafe\u0301",
    "unwanted",
    "cats",
    "[MASK]",
    "[SEP]",
    "##s",
)
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=12),
        st.lists(st.sampled_from(HARD) | st.sampled_from(WORDS), max_size=8).map("".join),
        st.text("a\u0301b天 ", min_size=195, max_size=210),
    ),
    min_size=1,
    max_size=6,
)
SETTINGS = [(True, True, True), (False, False, True), (True, False, True), (True, True, False)]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def tokenizer(request):
    lower_case, strip_accents, chinese = request.param
    return BertTokenizer([*SPECIAL_TOKENS, *WORDS], lower_case, False, strip_accents, chinese)


# Pieces


@fewer(5)
@given(TEXTS)
def test_offsets_lead_back_to_the_text(tokenizer, texts):
    """On the borders of characters; the text of each word alone gives its pieces."""
    check_words_alone(tokenizer, texts)


@fewer(8)
@given(TEXTS)
def test_texts_are_tokenized_each_by_itself(tokenizer, texts):
    whole = tokenizer.tokenize(texts).to_list()
    assert whole == [tokenizer.tokenize([text]).to_list()[0] for text in texts]
    assert whole[::-1] == tokenizer.tokenize(texts[::-1]).to_list()
    columns = [column.to_list() for column in tokenizer.tokenize_with_offsets(texts)]
    for row, text in enumerate(texts):
        alone = tokenizer.tokenize_with_offsets([text])
        assert [column[row] for column in columns] == [x.to_list()[0] for x in alone]


@fewer(5)
@given(TEXTS)
def test_what_pieces_spell_gives_the_same_pieces(tokenizer, texts):
    for ids in tokenizer.tokenize(texts).to_list():
        words = [tokenizer.vocab[i] for i in ids if i != tokenizer.unk_id]
        spelt = " ".join(words).replace(" ##", "")
        starts = "##" not in spelt and not any(word in ("#", "##") for word in words)
        if starts and words and not words[0].startswith("##") and len(words) == len(ids):
            assert tokenizer.tokenize([spelt]).to_list()[0] == ids


def truncated(first, second, room):
    """google-research/bert's rule: the end of the longer one goes, of equal ones the second's."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


SEGMENTS = st.lists(st.integers(5, 99), max_size=20)


@fewer(5)
@given(st.lists(st.tuples(SEGMENTS, SEGMENTS), min_size=1, max_size=5), st.integers(5, 30))
def test_packed_pairs(rows, L):
    tokenizer = BertTokenizer([*SPECIAL_TOKENS, *WORDS])
    ragged = [tf.ragged.constant(list(column), tf.int32, 1) for column in zip(*rows, strict=True)]
    found = {name: x.numpy() for name, x in tokenizer.pack(ragged, L).items()}
    alone = {name: x.numpy() for name, x in tokenizer.pack(ragged[:1], L).items()}
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    for row, (first, second) in enumerate(rows):
        a, b = truncated(first, second, L - 3)
        expected = [[cls, *a, sep, *b, sep], [cls, *first[: L - 2], sep]]
        types = [[0] * (len(a) + 2) + [1] * (len(b) + 1), []]
        for features, ids, kinds in zip((found, alone), expected, types, strict=True):
            padding = [0] * (L - len(ids))
            assert features["input_ids"][row].tolist() == ids + padding
            assert features["attention_mask"][row].tolist() == [1] * len(ids) + padding
            assert features["token_type_ids"][row].tolist() == kinds + [0] * (L - len(kinds))


@fewer(5)
@given(TEXTS, TEXTS, st.integers(8, 24), st.integers(1, 20), st.integers(1, 9), st.data())
def test_windows_show_every_token(questions, contexts, L, stride, most, data):
    tokenizer = BertTokenizer([*SPECIAL_TOKENS, *WORDS])
    examples = []
    for number, (question, context) in enumerate(zip(questions, contexts, strict=False)):
        start = data.draw(st.integers(0, len(context)))
        answer = context[start : data.draw(st.integers(start, len(context)))]
        answers = (Answer(answer, start),) if answer.strip() else ()
        examples.append(QuestionExample("", str(number), question, context, answers, not answers))
    most = min(most, L - 4)
    windows = question_windows(examples, tokenizer, L, stride, most)
    assert [window.example for window in windows] == sorted(window.example for window in windows)
    for number, example in enumerate(examples):
        mine = [window for window in windows if window.example == number]
        columns = tokenizer.tokenize_with_offsets([example.context])
        ids, starts, ends = (column.to_list()[0] for column in columns)
        question = tokenizer.tokenize([example.question]).to_list()[0][:most]
        shown, best = set(), []
        spans = list(zip(starts, ends, ids, strict=True))
        for window in mine:
            assert len(window.input_ids) <= L and len(window.token_type_ids) == len(
                window.input_ids
            )
            head = [tokenizer.cls_id, *question, tokenizer.sep_id]
            body = window.input_ids[len(head) : -1].tolist()
            assert window.input_ids[: len(head)].tolist() == head
            assert window.input_ids[-1] == tokenizer.sep_id and window.context_begin == len(head)
            assert window.token_type_ids.tolist() == [0] * len(head) + [1] * (len(body) + 1)
            rows = list(zip(window.starts.tolist(), window.ends.tolist(), body, strict=True))
            assert any(spans[i : i + len(rows)] == rows for i in range(len(spans) + 1))
            shown.update(rows)
            best += [r for r, is_best in zip(rows, window.is_max_context, strict=True) if is_best]
            first, last = window.start_position, window.end_position
            if first:
                (answer,) = example.answers
                begin = len(example.context[: answer.start].encode())
                end = begin + len(answer.text.encode())
                covered = [r for r in spans if r[0] < end and r[1] > begin]
                assert covered == rows[first - len(head) : last - len(head) + 1]
        assert shown == set(spans) and sorted(best) == sorted(spans)


# Files of text


@given(st.text(st.characters(codec="utf-8"), max_size=60) | TEXTS.map(". ".join))
def test_sentences_are_the_whole_line(line):
    parts = split_sentences(line)
    assert "".join(parts) == line and (len(parts) == 1 or all(parts))


LINES = st.sampled_from(
    ("the cat", "a. The cat sat. B!", "", "", " \t", "天气", "un", "x" * 40, "é\r")
)
FILES = st.lists(LINES, max_size=14).map("\n".join)


def documents_of(lines):
    """Lists of lines, of lines with empty ones between documents."""
    found = [[]]
    for line in lines:
        found.append([]) if not line else found[-1].append(line)
    return [document for document in found if document]


@given(FILES, st.integers(1, 60))
def test_pieces_of_a_file_hold_each_document_once(text, piece_bytes):
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/a.txt", f"{folder}/a.jsonl"]
        text += "" if "\n" in text else "\n"  # CR alone would be the line end of old Macs
        pathlib.Path(paths[0]).write_bytes(text.encode())
        wanted = documents_of(line.strip().encode() for line in text.split("\n"))
        with open(paths[1], "w") as file:
            for document in wanted:
                value = {"text": b"\n".join(document).decode()}
                file.write(json.dumps(value) + "\n" * (1 + len(document) % 2))
        for path in paths:
            pieces = split_into_pieces([path], piece_bytes)
            lines = [line for piece in pieces for line in [*read_lines(piece), b""]]
            assert documents_of(lines) == wanted


@fewer(10)
@given(st.lists(FILES, min_size=1, max_size=3), st.integers(1, 60))
def test_prepared_documents_are_the_same_for_any_piece_size(texts, piece_bytes):
    tokenizer = BertTokenizer([*SPECIAL_TOKENS, *WORDS])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for number, text in enumerate(texts):
            pathlib.Path(folder, f"{number}.txt").write_bytes(text.encode())
        found = [documents_prepared(folder, "whole", tokenizer)]
        patch.setattr(
            preparation, "split_into_pieces", lambda paths: split_into_pieces(paths, piece_bytes)
        )
        patch.setattr(shard_builder, "BATCH_BYTES", piece_bytes)
        found.append(documents_prepared(folder, "pieces", tokenizer))
    assert found[0] == found[1]


def documents_prepared(folder, name, tokenizer, processes=1):
    """Sentences of ids of each document, and where sentences start; or what is refused."""
    try:
        corpus = prepare(f"{folder}/*.txt", f"{folder}/{name}", tokenizer, processes=processes)
    except UserError as error:
        return str(error)
    starts = corpus.document_starts
    spans = np.stack([starts[:-1], starts[1:]], axis=1)
    sentences = [
        shard.sentences + start
        for shard, start in zip(corpus.shards, corpus.shard_starts, strict=False)
    ]
    counts = {name: corpus.manifest[name] for name in ("documents", "sentences", "tokens", "lines")}
    ids = corpus.read_all(spans).tolist()
    return ids, starts.tolist(), np.concatenate(sentences).tolist(), counts


@pytest.mark.slow
def test_prepared_documents_are_the_same_for_any_number_of_processes(tmp_path, monkeypatch):
    tokenizer = BertTokenizer([*SPECIAL_TOKENS, *WORDS])
    rng = np.random.default_rng(0)
    for number in range(3):
        lines = rng.choice(["the cat", "", "un. The cats", "天气", "a b."], 60)
        (tmp_path / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(local_runner, "_SMALL_BYTES", 0)
    monkeypatch.setattr(preparation, "split_into_pieces", lambda p: split_into_pieces(p, 100))
    found = [documents_prepared(tmp_path, f"c{n}", tokenizer, n) for n in (1, 2, 3)]
    assert found[0] == found[1] == found[2] and len(found[0][0]) > 100


# Files of examples and vocabularies

CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_examples_come_back_from_json_lines_and_tables(rows):
    rows = [row for row in rows if all(cell.strip() for cell in row)]
    assume(rows)
    config = types.SimpleNamespace(task="classify", text_column="text", label_column="label")
    config.text_pair_column = config.label_columns = config.choice_columns = None
    config.header, config.skip_bad_lines = "yes", False
    wanted = [(text, label.strip()) for text, label in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a.jsonl")
        lines = [json.dumps({"text": a, "label": b}, ensure_ascii=False) for a, b in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        found = read_split(str(path), config)
        assert [(example.text, example.label) for example in found] == wanted
        if not any(char in cell for row in rows for cell in row for char in "\t\n\r"):
            path = pathlib.Path(folder, "a.tsv")
            text = "".join(f"{a}\t{b}\n" for a, b in [("text", "label"), *rows])
            path.write_bytes(text.encode())
            found = read_split(str(path), config)
            assert [(example.text, example.label) for example in found] == wanted


@given(st.lists(CELLS, unique=True, max_size=20))
def test_a_vocabulary_comes_back(words):
    vocab = [*SPECIAL_TOKENS, *dict.fromkeys(w for w in words if w.strip() == w != "")]
    assume(len(set(vocab)) == len(vocab) and not any("\n" in word for word in vocab))
    with tempfile.TemporaryDirectory() as folder:
        write_vocab(vocab, pathlib.Path(folder, "vocab.txt"))
        assert read_vocab(pathlib.Path(folder, "vocab.txt")) == check_vocab(vocab, "given")
