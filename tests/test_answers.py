"""Answers from logits: all spans tried in plain Python, and by hand."""

import math
import random

import numpy as np
import pytest
from question_windows import answers_of, question_windows

from kbert.data.examples import Answer, QuestionExample
from kbert.errors import UserError
from kbert.tasks.answers import best_answers, best_null_threshold
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS

WORDS = [f"w{i}" for i in range(30)] + ["x", "天", "\u1112", "##\u1161", "##\u11ab"]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer([*SPECIAL_TOKENS, *WORDS])


def question(context, id="7", question="x", answers=(), is_impossible=False):
    return QuestionExample(f"question {id}", id, question, context, answers, is_impossible)


def logits(windows, **values):
    """Zeros, but for positions of the first window: p3=2.5 is that of index 3."""
    found = [np.zeros(len(window.input_ids), np.float32) for window in windows]
    for name, value in values.items():
        found[0][int(name[1:])] = value
    return found


def plain_answers(example, windows, starts, ends, top_k, max_answer_length):
    """(score, start, end) of the spans that do not overlap, from all there are; the null score."""
    spans, null_score = [], math.inf
    for window, start, end in zip(windows, starts, ends, strict=True):
        null_score = min(null_score, start[0] + end[0])
        T = len(window.starts)
        for first in range(T):
            for last in range(first, T):
                if last - first + 1 <= max_answer_length and window.is_max_context[first]:
                    score = start[window.context_begin + first] + end[window.context_begin + last]
                    spans.append((score, int(window.starts[first]), int(window.ends[last])))
    spans.sort(key=lambda span: -span[0])
    kept = []
    for span in spans:
        if len(kept) < top_k and all(span[2] <= a or span[1] >= b for _, a, b in kept):
            kept.append(span)
    return kept, null_score


@pytest.mark.parametrize("allow_no_answer", [False, True])
def test_equals_trying_all_spans(tokenizer, allow_no_answer):
    generator, rng = random.Random(2), np.random.default_rng(2)
    nothing = 0
    for _ in range(25):
        examples = [
            question(" ".join(f"w{i}" for i in generator.choices(range(30), k=count)), str(number))
            for number, count in enumerate(generator.choices(range(1, 25), k=3))
        ]
        windows = question_windows(examples, tokenizer, generator.randrange(6, 16), 3)
        starts, ends = ([rng.normal(size=len(w.input_ids)) * 3 for w in windows] for _ in range(2))
        top_k, longest = generator.randrange(1, 7), generator.randrange(1, 9)
        found = answers_of(
            examples, windows, starts, ends, top_k, longest, allow_no_answer, null_threshold=-0.5
        )
        for index, (example, answer) in enumerate(zip(examples, found, strict=True)):
            own = [i for i, window in enumerate(windows) if window.example == index]
            expected, null_score = plain_answers(
                example, *([x[i] for i in own] for x in (windows, starts, ends)), top_k, longest
            )
            assert answer["no_answer_score"] == pytest.approx(null_score, abs=1e-12)
            none = allow_no_answer and null_score - expected[0][0] > -0.5
            nothing += none
            best = (null_score, None, None) if none else expected[0]
            assert (answer["score"], answer["start"], answer["end"]) == pytest.approx(best)
            rows = [(c["score"], c["start"], c["end"]) for c in answer["candidates"]]
            if allow_no_answer:
                expected.append((null_score, None, None))
            assert rows == sorted(expected, key=lambda row: -row[0])
            total = sum(math.exp(row[0]) for row in rows)
            for candidate in [answer, *answer["candidates"]]:
                part = example.context[candidate["start"] : candidate["end"]]
                assert candidate["text"] == ("" if candidate["start"] is None else part)
                share = math.exp(candidate["score"]) / total
                assert candidate["probability"] == pytest.approx(share, rel=1e-9)
    assert (nothing > 4) == allow_no_answer


def test_answers_by_hand(tokenizer):
    """[CLS] x [SEP] w0 w1 天 w2 w3 [SEP]; the best end is before the best start."""
    case = question("w0 w1 天w2  w3")
    windows = question_windows([case], tokenizer, 20, 9)
    starts = logits(windows, p0=1, p2=50, p4=3, p7=5)
    ends = logits(windows, p0=0.5, p1=50, p5=4, p6=2)
    (answer,) = answers_of([case], windows, starts, ends)
    assert (answer["text"], answer["start"], answer["end"]) == ("w1 天", 3, 7)
    assert (answer["byte_start"], answer["byte_end"]) == (3, 9)
    assert (answer["score"], answer["no_answer_score"]) == (7, 1.5)
    kept = [(c["text"], c["score"]) for c in answer["candidates"]]
    assert kept == [("w1 天", 7), ("w3", 5), ("w2", 2), ("w0", 0)]
    (answer,) = answers_of([case], windows, starts, ends, top_k=2, max_answer_length=1)
    kept = [(c["text"], c["score"]) for c in answer["candidates"]]
    assert kept == [("w3", 5), ("天", 4)]
    (answer,) = answers_of([case], windows, starts, logits(windows, p5=1, p6=3), 9, 1)
    kept = [(c["text"], c["score"]) for c in answer["candidates"]]  # neighbours share no byte
    assert kept == [("w3", 5), ("w1", 3), ("w2", 3), ("天", 1), ("w0", 0)]


def test_candidates_that_overlap(tokenizer):
    """[CLS] x [SEP] w0 w1 w2 [SEP]; every span, the best first."""
    case = question("w0 w1 w2")
    windows = question_windows([case], tokenizer, 20, 9)
    arguments = [case], windows, logits(windows, p3=5, p4=4), logits(windows, p4=2, p5=1)
    (answer,) = answers_of(*arguments, top_k=4, allow_overlap=True)
    found = [(c["text"], c["score"]) for c in answer["candidates"]]
    assert found == [("w0 w1", 7), ("w0 w1 w2", 6), ("w1", 6), ("w0", 5)]
    assert answer["text"] == "w0 w1"
    (answer,) = answers_of(*arguments, top_k=99, allow_overlap=True)
    assert len(answer["candidates"]) == 6
    (answer,) = answers_of(*arguments, top_k=9, max_answer_length=1, allow_overlap=True)
    assert [c["text"] for c in answer["candidates"]] == ["w1", "w0", "w2"]


def test_no_answer(tokenizer):
    case = question("w0 w1")
    windows = question_windows([case], tokenizer, 20, 9)
    starts, ends = logits(windows, p0=3, p3=2), logits(windows, p0=2, p4=2)

    def answer(**arguments):
        return answers_of([case], windows, starts, ends, **arguments)[0]

    assert answer()["text"] == "w0 w1" and len(answer()["candidates"]) == 1
    assert answer()["probability"] == 1
    none = answer(allow_no_answer=True)
    assert (none["text"], none["start"], none["end"], none["score"]) == ("", None, None, 5)
    assert [c["text"] for c in none["candidates"]] == ["", "w0 w1"]
    assert none["probability"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert answer(allow_no_answer=True, null_threshold=1.0)["text"] == "w0 w1"  # not more than 1
    assert answer(allow_no_answer=True, null_threshold=0.99)["text"] == ""


def test_no_answer_of_several_windows(tokenizer):
    """The least of all windows counts: one that is sure of an answer is enough."""
    case = question("w0 w1 w2 w3 w4 w5")
    windows = question_windows([case], tokenizer, 7, 3)
    assert len(windows) == 2
    starts, ends = logits(windows), logits(windows)
    starts[0][0], ends[1][0] = 8, -1
    (answer,) = answers_of([case], windows, starts, ends)
    assert answer["no_answer_score"] == -1


def test_a_start_counts_only_where_its_context_is_widest(tokenizer):
    case = question("w0 w1 w2 w3")
    windows = question_windows([case], tokenizer, 7, 1)
    assert [window.is_max_context.tolist() for window in windows] == [
        *([True, True, False], [False, True, True])
    ]
    starts, ends = logits(windows), logits(windows)
    starts[0][5], starts[1][3] = 9, 9  # w2 at the end of the first, w1 at the begin of the second
    ends[1][5] = 2
    (answer,) = answers_of([case], windows, starts, ends)
    assert (answer["text"], answer["score"]) == ("w2 w3", 2)


def test_the_text_is_that_of_the_context(tokenizer):
    case = question("天é  \U0001f600 W1\u0301 .")
    windows = question_windows([case], tokenizer, 20, 9)
    tokens = [tokenizer.vocab[i] for i in windows[0].input_ids]
    assert tokens[3:] == ["天", "[UNK]", "[UNK]", "w1", "[UNK]", "[SEP]"]
    starts, ends = logits(windows, p4=5), logits(windows, p6=5)
    (answer,) = answers_of([case], windows, starts, ends)
    assert answer["text"] == "é  \U0001f600 W1\u0301"
    assert (answer["start"], answer["end"]) == (1, 9)
    assert (answer["byte_start"], answer["byte_end"]) == (3, 16)
    assert case.context[1:9] == answer["text"]


def test_pieces_of_one_character_are_one_answer(tokenizer):
    case = question("한")
    windows = question_windows([case], tokenizer, 20, 9)
    (answer,) = answers_of([case], windows, logits(windows, p4=1), logits(windows, p4=1))
    assert [c["text"] for c in answer["candidates"]] == ["한"]


@pytest.mark.parametrize("allow_no_answer", [False, True])
def test_a_context_without_tokens(tokenizer, allow_no_answer):
    case = question("\u200b")
    windows = question_windows([case], tokenizer, 20, 9)
    (answer,) = answers_of(
        [case], windows, logits(windows, p0=2), logits(windows), allow_no_answer=allow_no_answer
    )
    offsets = dict.fromkeys(("start", "end", "byte_start", "byte_end"))
    none = {"text": "", **offsets, "score": 2.0, "probability": 1.0}
    assert answer == {**none, "no_answer_score": 2.0, "candidates": [none]}


def test_rows_of_a_padded_batch(tokenizer):
    """What is behind the window's length does not count."""
    case = question("w0 w1")
    windows = question_windows([case], tokenizer, 20, 9)
    starts, ends = logits(windows, p4=2), logits(windows)
    expected = answers_of([case], windows, starts, ends)
    padded = [[np.append(row, [99] * 4) for row in rows] for rows in (starts, ends)]
    assert answers_of([case], windows, *padded) == expected


def test_arguments_out_of_range():
    with pytest.raises(UserError, match=r"top_k must be at least 1; got 0\."):
        best_answers([], [], [], top_k=0)
    with pytest.raises(UserError, match=r"max_answer_length must be at least 1; got -3\."):
        best_answers([], [], [], max_answer_length=-3)


def answered(difference, text):
    found = {"text": text, "start": 0, "end": len(text), "score": 2.0}
    none = {"text": "", "start": None, "end": None, "score": 2.0 + difference}
    return {"no_answer_score": 2.0 + difference, "candidates": [none, found]}


def plain_threshold(examples, answers):
    """The best of all thresholds that change anything, as (threshold, F1)."""
    from kbert.tasks.squad import squad_scores

    differences = sorted({a["no_answer_score"] - 2.0 for a in answers})
    best = (None, -1.0)
    for threshold in [differences[0] - 1, *differences]:
        texts = {
            e.id: "" if a["no_answer_score"] - 2.0 > threshold else a["candidates"][1]["text"]
            for e, a in zip(examples, answers, strict=True)
        }
        f1 = squad_scores(examples, texts)["f1"]
        if f1 > best[1] + 1e-9:
            best = (threshold, f1)
    return best


def test_threshold_equals_trying_all():
    generator = random.Random(4)
    for _ in range(100):
        examples, answers = [], []
        for number in range(generator.randrange(1, 12)):
            right = (Answer("w1 w2", 0),) if generator.random() < 0.5 else ()
            examples.append(question("c", str(number), answers=right, is_impossible=not right))
            text = generator.choice(["w1 w2", "w1", "w3", "the"])
            answers.append(answered(generator.randrange(-4, 5) / 2, text))
        found = best_null_threshold(examples, answers)
        assert found == pytest.approx(plain_threshold(examples, answers))


def test_thresholds_by_hand():
    right = question("c", "1", answers=(Answer("w1", 0),))
    impossible = question("c", "2", is_impossible=True)
    assert best_null_threshold([right, impossible], [answered(1, "w1"), answered(3, "w1")]) == (
        *(1.0, 100.0),
    )
    # Nothing can tell them apart: to answer both is as good as to answer none.
    threshold, f1 = best_null_threshold([right, impossible], [answered(1, "w1")] * 2)
    assert (threshold, f1) == (0.0, 50.0)
    # It is best to answer nothing, and the threshold says so.
    assert best_null_threshold([impossible], [answered(-2.5, "w1")]) == (-3.5, 100.0)


def test_threshold_gives_the_scores_it_promises(tokenizer):
    from kbert.tasks.squad import squad_scores

    rng = np.random.default_rng(5)
    examples = []
    for number in range(40):
        right = (Answer("w3 w4", 9),) if number % 3 else ()
        context = "w0 w1 w2 w3 w4 w5"
        examples.append(question(context, str(number), answers=right, is_impossible=not right))
    examples.append(question("\u200b", "40", is_impossible=True))  # nothing to answer with
    windows = question_windows(examples, tokenizer, 30, 9)
    starts, ends = ([rng.normal(size=len(w.input_ids)) for w in windows] for _ in range(2))
    for window, start, end in zip(windows, starts, ends, strict=True):
        start[window.start_position] += 2
        end[window.end_position] += 2
    for allowed in (False, True):
        answers = answers_of(examples, windows, starts, ends, allow_no_answer=allowed)
        threshold, f1 = best_null_threshold(examples, answers)
        chosen = answers_of(
            examples, windows, starts, ends, allow_no_answer=True, null_threshold=threshold
        )
        texts = {e.id: a["text"] for e, a in zip(examples, chosen, strict=True)}
        assert squad_scores(examples, texts)["f1"] == pytest.approx(f1)
        assert 60 < f1 < 100


def test_threshold_without_labels():
    with pytest.raises(UserError, match=r"there are no questions to tune the threshold on\."):
        best_null_threshold([], [])
    with pytest.raises(UserError, match=r"question 7: the question has no answers"):
        best_null_threshold([question("c")], [answered(1, "w1")])
