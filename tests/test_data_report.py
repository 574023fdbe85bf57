"""What a run reports about the examples that it has read."""

import numpy as np
import pytest

from kbert.data.examples import Answer, ChoiceExample, QuestionExample, TagExample, TextExample
from kbert.tasks.choice import Choice
from kbert.tasks.classify import Classification
from kbert.tasks.multilabel import MultiLabel
from kbert.tasks.pair import PairClassification
from kbert.tasks.qa import QuestionAnswering
from kbert.tasks.regress import Regression
from kbert.tasks.tag import Tagging
from kbert.tokenizer import BertTokenizer
from kbert.train.data_report import data_lines, length_lines, token_lengths, truncation_notes


@pytest.fixture
def tokenizer(vocab_file):
    return BertTokenizer(vocab_file)


def test_labels_and_examples_by_field(tokenizer):
    rows = [
        TextExample("a.tsv, line 2", "the cat sat", None, "pos"),
        TextExample("a.tsv, line 3", "a dog ran\n" + "a mat " * 90, "on a mat", "0"),
        TextExample("a.tsv, line 4", "a dog", None, "neg"),
    ]
    task = PairClassification(tokenizer, ("neg", "pos", "so"), 8)
    examples = {"train": rows, "test": [TextExample("b.tsv, line 2", "a", None, "odd")]}
    lines = list(data_lines(task, examples))
    assert lines[:6] == [
        "train labels: neg 2 (66.7%), pos 1 (33.3%), so 0 (0.0%)",
        "test labels: neg 0 (0.0%), pos 0 (0.0%), so 0 (0.0%), odd 1 (100.0%)",
        "example 1, a.tsv, line 2:",
        "  text: the cat sat",
        "  label: pos",
        "example 2, a.tsv, line 3:",
    ]
    assert lines[6].startswith(r"  text: a dog ran\na mat a mat") and len(lines[6]) < 170
    assert lines[7:] == ["  text_pair: on a mat", "  label: 0"]


def test_labels_of_each_task(tokenizer):
    def labels(task, values):
        return task.label_summary([TextExample("", "a", None, value) for value in values])

    several = MultiLabel(tokenizer, ("a", "b"), 8)
    assert labels(several, [("a",), ("a", "b"), (), ()]) == (
        "a 2 (50.0%), b 1 (25.0%), no label 2 (50.0%)"
    )
    assert labels(Regression(tokenizer, None, 8), [1.0, 2.5, 4.0]) == "1 to 4, mean 2.5"
    tagged = [TagExample("", ("a", "cat", "ran"), ("O", "B-X", "O"))]
    assert Tagging(tokenizer, ("B-X", "O"), 8).label_summary(tagged) == (
        "B-X 1 (33.3%), O 2 (66.7%)"
    )
    choices = [ChoiceExample("", "a", ("a", "b"), label) for label in (1, 0, 1)]
    assert Choice(tokenizer).label_summary(choices) == "choice 0 1 times, choice 1 2 times"


def test_answers_that_are_too_long(tokenizer):
    """The shortest answer counts; unanswerable questions have none."""
    context = "the cat sat on a mat"
    answers = (Answer("cat sat on a mat", 4), Answer("cat", 4))
    rows = [
        QuestionExample("", "1", "a ?", context, answers),
        QuestionExample("", "2", "a ?", context, answers[:1]),
        QuestionExample("", "3", "a ?", context, (), True),
    ]
    task = QuestionAnswering(tokenizer, 16, max_answer_length=4)
    assert task.label_summary(rows) == "2 questions with an answer, 1 without"
    lines = list(data_lines(task, {"train": rows}))
    assert lines[1:6] == [
        "example 1, :",
        "  id: 1",
        "  question: a ?",
        f"  context: {context}",
        "  answers: ({'text': 'cat sat on a mat', 'start': 4}, {'text': 'cat', 'start': 4})",
    ]
    assert lines[-1] == (
        "note: train: the answers of 1 of 2 questions (50.0%) are longer than "
        "--max_answer_length=4 tokens, so they are never predicted; the longest has 5"
    )
    assert QuestionAnswering(tokenizer, 16, max_answer_length=5).data_warnings(rows) == []
    assert QuestionAnswering(tokenizer, 16).data_warnings(rows[2:]) == []


@pytest.mark.parametrize(
    ("task", "examples", "expected"),
    [
        (
            Classification,
            [TextExample("", "a " * n, None, "x") for n in (1, 6, 7, 300)],
            [3, 8, 9, 302],
        ),
        (
            PairClassification,
            [TextExample("", "a " * n, "a dog ran", "x") for n in (1, 2, 3)],
            [7, 8, 9],
        ),
        (
            Tagging,
            [TagExample("", ("running",) * n, ("x",) * n) for n in (1, 3, 9)],
            [4, 8, 20],
        ),
        (Choice, [ChoiceExample("", "a " * n, ("a", "a mat a"), 0) for n in (2, 9)], [8, 15]),
        (
            QuestionAnswering,
            [QuestionExample("", f"{n}", "a cat", "a " * n) for n in (2, 90, 3)],
            [7, 95, 8],
        ),
    ],
)
def test_lengths_are_those_before_truncation(tokenizer, task, examples, expected):
    if task is QuestionAnswering:
        task = task(tokenizer, 8, doc_stride=2)
    else:
        task = task(tokenizer, ("x", "y"), 8)
    encoded = task.encode(examples)
    assert max(item.length for item in encoded.items) == 8
    assert token_lengths(task, examples, encoded).tolist() == expected


def test_lengths_as_text():
    lengths = {"train": np.arange(1, 201), "eval": np.array([3, 4])}
    assert list(truncation_notes(lengths, 190)) == [
        "note: train: 10 of 200 examples (5.0%) exceed --max_seq_length=190 tokens and will be "
        "truncated; the longest has 200 tokens"
    ]
    assert list(length_lines(lengths, 190)) == [
        "train lengths in tokens: up to 101 (50 %), 181 (90 %), 191 (95 %), 199 (99 %), 200 (all); "
        "5.0% are longer than --max_seq_length=190",
        "eval lengths in tokens: up to 4 (50 %), 4 (90 %), 4 (95 %), 4 (99 %), 4 (all); 0.0% are "
        "longer than --max_seq_length=190",
    ]
