"""Scores of answers: published predictions, hand-made cases, and right answers through windows."""

import gzip
import json

import numpy as np
import pytest
from marks import slow
from question_windows import answers_of, question_windows

from kbert.data.examples import Answer, QuestionExample
from kbert.errors import UserError
from kbert.tasks.squad import squad_scores
from kbert.tokenizer import BertTokenizer


def load(path):
    root = json.loads(gzip.open(path).read())
    return [
        QuestionExample(
            where=f"question {q['id']}",
            id=q["id"],
            question=q["question"],
            context=paragraph["context"],
            answers=tuple(Answer(a["text"], a["answer_start"]) for a in q["answers"]),
            is_impossible=q.get("is_impossible", False),
        )
        for article in root["data"]
        for paragraph in article["paragraphs"]
        for q in paragraph["qas"]
    ]


@pytest.mark.parametrize(
    ("data", "predictions", "exact_match", "f1"),
    [
        ("dev-v1.1", "dev-v1.1_bert-ensemble", 86.2062, 92.1956),
        ("dev-v1.1", "dev-v1.1_logistic-baseline", 40.1419, 50.9815),
        ("dev-v2.0", "dev-v2.0_bert-single", 78.7417, 81.7753),
    ],
)
def test_published_predictions(shared_data, data, predictions, exact_match, f1):
    """Their scores on the leaderboard."""
    examples = load(shared_data / f"squad/{data}.json.gz")
    path = shared_data / f"squad/predictions_{predictions}.json.gz"
    scores = squad_scores(examples, json.loads(gzip.open(path).read()))
    assert scores["exact_match"] == pytest.approx(exact_match, abs=5e-5)
    assert scores["f1"] == pytest.approx(f1, abs=5e-5)
    assert ("HasAns_f1" in scores) == (data == "dev-v2.0")
    if data == "dev-v2.0":
        assert (scores["HasAns_total"], scores["NoAns_total"]) == (5928, 5945)
        for name, figure in (("exact", "exact_match"), ("f1", "f1")):
            both = scores[f"HasAns_{name}"] * 5928 + scores[f"NoAns_{name}"] * 5945
            assert both / 11873 == pytest.approx(scores[figure])


def question(*answers, id="7", is_impossible=False):
    answers = tuple(Answer(text, 0) for text in answers)
    return QuestionExample(f"f.json, question {id}", id, "q", "c", answers, is_impossible)


@pytest.mark.parametrize(
    ("answers", "text", "exact_match", "f1"),
    [
        (["Denver Broncos"], "the  denver\tBRONCOS!", 100, 100),
        (["Denver Broncos"], "Broncos", 0, 100 * 2 / 3),
        (["Denver Broncos"], "Broncos of Denver of", 0, 100 * 4 / 6),
        (["a b", "x y z"], "y x", 0, 100 * 4 / 5),  # the best right answer
        (["x x y"], "x y y", 0, 100 * 4 / 6),  # words count as often as they come
        (["x"], "", 0, 0),
        (["x"], "an", 0, 0),
        (["An"], "x", 0, 0),
        (["An"], "the", 100, 100),
        (["An", "an x"], "the", 0, 0),
        (["theatre"], "atre", 0, 0),  # an article is a whole word
        (["U.S."], "us", 100, 100),
        (["x–y"], "x y", 0, 0),  # no punctuation of ASCII
        (["天气"], "天气好", 0, 0),  # no white space: one word
        (["天气"], "天气", 100, 100),
    ],
)
def test_one_answer(answers, text, exact_match, f1):
    expected = {"exact_match": exact_match, "f1": pytest.approx(f1)}
    assert squad_scores([question(*answers)], {"7": text}) == expected


def test_questions_with_and_without_answers():
    examples = [
        question("x y", id="1"),
        question("x y", id="2"),
        question("x y", id="3"),
        question(id="4", is_impossible=True),
        question(id="5", is_impossible=True),
    ]
    texts = {"1": "y x", "2": "", "3": "X, Y", "4": "x", "5": "", "6": "x"}
    assert squad_scores(examples, texts) == {
        "exact_match": 40.0,
        "f1": 60.0,
        "HasAns_exact": pytest.approx(100 / 3),
        "HasAns_f1": pytest.approx(200 / 3),
        "HasAns_total": 3,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }
    found = squad_scores(examples[3:], {"4": "the", "5": "x"})  # "the" is nothing
    assert found["NoAns_f1"] == 50.0 and "HasAns_f1" not in found


def test_questions_without_a_prediction_count_0():
    examples = [question("x", id="1"), question(id="2", is_impossible=True)]
    assert squad_scores(examples, {})["f1"] == 0
    assert squad_scores(examples, {"1": "x"})["exact_match"] == 50


def test_what_cannot_be_scored():
    with pytest.raises(UserError, match=r"there are no questions to score\."):
        squad_scores([], {})
    with pytest.raises(
        UserError, match=r"f\.json, question 7: the question has no answers, so it cannot be scored"
    ):
        squad_scores([question()], {"7": "x"})


@pytest.mark.parametrize(
    ("path", "vocab", "lower_case", "questions", "exact"),
    [
        # One right answer ends in the middle of a number: "7,000,000 square kilometres (2,70".
        *slow(("squad/xquad.en.json.gz", "uncased", True, 1190, 1189)),
        *slow(("squad/xquad.en.json.gz", "cased", False, 1190, 1189)),
        # The other seven have 173 characters or more, and no window has both the end and the widest
        # context of the begin.
        *slow(("cmrc2018/cmrc2018_trial.json.gz", "chinese", True, 997, 990)),
    ],
)
def test_right_answers_come_through(shared_data, path, vocab, lower_case, questions, exact):
    """Logits that point at the first right answer give its text, as exactly as tokens allow."""
    examples = load(shared_data / path)
    # Five answers of CMRC do not stand where they say; reading it leaves them out.
    examples = [e for e in examples if e.context.startswith(e.answers[0].text, e.answers[0].start)]
    tokenizer = BertTokenizer(shared_data / f"vocab/bert-base-{vocab}-vocab.txt", lower_case)
    windows = question_windows(examples, tokenizer, 384, 128)
    assert len(windows) > len(examples)
    starts, ends = [], []
    for window in windows:
        tokens = np.arange(len(window.input_ids))
        starts.append(np.where(tokens == window.start_position, 9.0, 0.0))
        ends.append(np.where(tokens == window.end_position, 9.0, 0.0))
    answers = answers_of(examples, windows, starts, ends, top_k=1, max_answer_length=320)
    texts = {e.id: answer["text"] for e, answer in zip(examples, answers, strict=True)}
    scores = squad_scores(examples, texts)
    assert len(examples) == questions
    assert scores["exact_match"] == pytest.approx(100 * exact / questions)
