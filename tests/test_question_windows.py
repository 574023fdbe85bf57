"""Windows of questions: against a plain reading of run_squad.py, and by hand."""

import collections
import functools
import gzip
import json
import random

import numpy as np
import pytest
from question_windows import question_windows

from kbert.data.examples import Answer, QuestionExample
from kbert.errors import UserError
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS

WORDS = [f"w{i}" for i in range(40)] + ["a", "##b", "天", "caf", "##e", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer([*SPECIAL_TOKENS, *WORDS])


def example(question="x a", context="a", answers=(), is_impossible=False, id="7"):
    return QuestionExample("f.json, question 7", id, question, context, answers, is_impossible)


def plain_windows(length, room, doc_stride):
    """The document spans of run_squad.py, and for each token the span of maximum context."""
    spans, start = [], 0
    while start < length:
        size = min(length - start, room)
        spans.append((start, size))
        if start + size == length:
            break
        start += min(size, doc_stride)
    best = []
    for token in range(length):
        scores = {}
        for number, (start, size) in enumerate(spans):
            if start <= token < start + size:
                shown = min(token - start, start + size - 1 - token)
                scores[number] = shown + 0.01 * size
        best.append(max(scores, key=scores.get))  # the first of equal ones
    return spans, best


def test_equals_run_squad(tokenizer):
    generator = random.Random(1)
    shapes = [(240, 205, 150, 2)]  # so long that a part of 100 tokens matters
    for _ in range(60):
        length, size = generator.randrange(1, 40), generator.randrange(7, 20)
        shapes.append((length, size, generator.randrange(1, 17), generator.randrange(1, 4)))
    for length, size, doc_stride, query in shapes:
        words = [f"w{i}" for i in generator.choices(range(40), k=length)]
        room = size - query - 3
        first = generator.randrange(length)
        last = generator.randrange(first, min(length, first + 4))
        begin = len(" ".join([*words[:first], ""]))
        answer = Answer(" ".join(words[first : last + 1]), begin)
        case = example("x " * 3, " ".join(words), (answer,))
        spans, best = plain_windows(length, room, doc_stride)
        found = question_windows([case], tokenizer, size, doc_stride, query)
        assert len(found) == len(spans)
        for number, (window, (start, count)) in enumerate(zip(found, spans, strict=True)):
            part = words[start : start + count]
            tokens = ["[CLS]", *["x"] * query, "[SEP]", *part, "[SEP]"]
            assert [tokenizer.vocab[i] for i in window.input_ids] == tokens
            assert window.token_type_ids.tolist() == [0] * (query + 2) + [1] * (count + 1)
            assert window.context_begin == query + 2
            assert window.is_max_context.tolist() == [
                best[token] == number for token in range(start, start + count)
            ]
            expected = (0, 0)
            if start <= first and last < start + count:
                expected = (first - start + query + 2, last - start + query + 2)
            assert (window.start_position, window.end_position) == expected
            source = [case.context[a:b] for a, b in zip(window.starts, window.ends, strict=True)]
            assert source == part


def test_a_window_by_hand(tokenizer):
    """Characters of one to four bytes before the answer, which begins in the middle of a token."""
    context = "天é\U0001f600 cafe\u0301 w12, 天ab"
    start = context.index("fe\u0301 w12")
    (window,) = question_windows(
        [example("x", context, (Answer("fe\u0301 w12", start), Answer("天", 0)))], tokenizer, 20, 3
    )
    tokens = ["[CLS]", "x", "[SEP]", "天", "[UNK]", "caf", "##e", "w12", "[UNK]", "天", "a"]
    assert [tokenizer.vocab[i] for i in window.input_ids] == [*tokens, "##b", "[SEP]"]
    assert window.token_type_ids.tolist() == [0] * 3 + [1] * 10
    assert window.context_begin == 3
    assert window.starts.tolist() == [0, 3, 10, 13, 17, 20, 22, 25, 26]
    assert window.ends.tolist() == [3, 9, 13, 16, 20, 21, 25, 26, 27]
    assert (window.start_position, window.end_position) == (5, 7)
    assert window.is_max_context.all()
    assert window.example == 0
    for name in ("input_ids", "token_type_ids", "starts", "ends"):
        assert getattr(window, name).dtype == np.int32


def test_questions_without_labels_or_answers(tokenizer):
    cases = [
        example(context="a w1 w2"),
        example(context="a w1 w2", is_impossible=True),
        example(context="a  w1 w2", answers=(Answer(" ", 1),)),
        example(context="a w1 w2", answers=(Answer("w2", 5),)),
    ]
    found = question_windows(cases, tokenizer, 9, 1)
    positions = [(w.start_position, w.end_position) for w in found]
    assert positions == [(None, None), (0, 0), (0, 0), (6, 6)]
    assert [w.example for w in found] == [0, 1, 2, 3]


def test_answers_that_no_window_holds(tokenizer):
    """Part of an answer is none."""
    context = " ".join(f"w{i}" for i in range(9))
    case = example("x", context, (Answer("w2 w3 w4", 6),))
    found = question_windows([case], tokenizer, 7, 2)  # 3 tokens of context
    assert [(w.start_position, w.end_position) for w in found] == [(0, 0), (3, 5), (0, 0), (0, 0)]
    found = question_windows([case], tokenizer, 6, 2)
    assert {(w.start_position, w.end_position) for w in found} == {(0, 0)}


def test_a_context_without_tokens(tokenizer):
    (window,) = question_windows([example(context=" \u200b")], tokenizer, 9, 3)
    assert [tokenizer.vocab[i] for i in window.input_ids] == ["[CLS]", "x", "a", "[SEP]", "[SEP]"]
    assert window.starts.shape == window.ends.shape == window.is_max_context.shape == (0,)


def test_no_examples(tokenizer):
    assert question_windows([], tokenizer, 9, 3) == []


def test_texts_are_tokenized_once_each(tokenizer, monkeypatch):
    asked = collections.Counter()

    def spy(texts, plain):
        asked.update(text.decode() for text in texts.numpy())
        return plain(texts)

    monkeypatch.setattr("kbert.tasks.qa._QUESTIONS", 15)
    for name in ("tokenize", "tokenize_with_offsets"):
        plain = getattr(tokenizer, name)
        monkeypatch.setattr(tokenizer, name, functools.partial(spy, plain=plain))
    cases = [example(f"x w{i}", f"w{i % 4} w{i % 5}") for i in range(15)]
    found = question_windows(cases + cases, tokenizer, 9, 3)
    assert asked == {text: 2 for case in cases for text in (case.question, case.context)}
    for window, case in zip(found, cases + cases, strict=True):
        tokens = [tokenizer.vocab[i] for i in window.input_ids]
        assert " ".join(tokens) == f"[CLS] {case.question} [SEP] {case.context} [SEP]"


def test_real_answers_are_covered(shared_data):
    """The tokens of an answer give its text, but for one that ends in the middle of a number."""
    path = shared_data / "squad/xquad.en.json.gz"
    root = json.loads(gzip.open(path).read())
    cases = [
        example(q["question"], p["context"], (Answer(a["text"], a["answer_start"]),))
        for article in root["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
        for a in q["answers"][:1]
    ]
    tokenizer = BertTokenizer(shared_data / "vocab/bert-base-uncased-vocab.txt")
    inside, exact = set(), set()
    for window in question_windows(cases, tokenizer, 384, 128):
        if window.start_position:
            inside.add(window.example)
            case = cases[window.example]
            begin = window.starts[window.start_position - window.context_begin]
            end = window.ends[window.end_position - window.context_begin]
            text = case.context.encode()[begin:end].decode()
            assert case.answers[0].text in text
            if text == case.answers[0].text:
                exact.add(window.example)
    assert len(cases) == len(inside) == 1190
    assert [cases[i].answers[0].text for i in inside - exact] == [
        "7,000,000 square kilometres (2,70"
    ]


def test_arguments_out_of_range(tokenizer):
    with pytest.raises(UserError, match=r"doc_stride must be at least 1; got 0\."):
        question_windows([example()], tokenizer, 9, 0)
    with pytest.raises(UserError, match=r"max_query_length must be at least 1; got -1\."):
        question_windows([example()], tokenizer, 9, 1, -1)
    message = (
        r"f\.json, question 7: the question takes up 3 tokens .* must be at least 7, got 6\. "
        r"Raise it, or lower max_query_length\."
    )
    with pytest.raises(UserError, match=message):
        question_windows([example("x x x x")], tokenizer, 6, 1, 3)
    assert len(question_windows([example("x x x x")], tokenizer, 7, 1, 3)) == 1
