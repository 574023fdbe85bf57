"""Labels that a model cannot predict: an error that names all of them, or wrong predictions."""

import numpy as np
import pytest
from sklearn import metrics

from kbert.data.examples import TagExample, TextExample
from kbert.errors import UserError
from kbert.inference.evaluation import evaluate
from kbert.settings import EvaluateConfig
from kbert.tasks.classify import Classification
from kbert.tasks.labels import all_label_names, keep_known_labels
from kbert.tasks.multilabel import MultiLabel
from kbert.tasks.tag import Tagging
from kbert.tokenizer import BertTokenizer

NAMES = ("neg", "pos", "so")
TRUE = ["pos", "odd", "neg", "so", "even", "pos", "odd"]
PREDICTED = ["pos", "pos", "neg", "neg", "so", "so", "neg"]


@pytest.fixture
def tokenizer(vocab_file):
    return BertTokenizer(vocab_file)


def rows(labels):
    return [TextExample(f"a.tsv, line {i}", "a", None, label) for i, label in enumerate(labels, 1)]


def test_the_error_names_all_unknown_labels():
    with pytest.raises(UserError) as caught:
        keep_known_labels(rows(TRUE), NAMES, False, print, "error")
    assert str(caught.value) == (
        "a.tsv, line 2: the label 'odd' is not one of the 3 labels: neg, pos, so. 3 of 7 examples "
        "have unknown labels: odd (2), even (1). Fix them, or skip such examples with "
        "--skip_bad_lines, or count them as wrong with --unknown_labels=wrong."
    )
    lines = []
    assert keep_known_labels(rows(TRUE), NAMES, False, lines.append, "wrong") == rows(TRUE)
    assert lines == [
        "note: 3 of 7 examples have unknown labels and count as wrong: odd (2), even (1)"
    ]


def test_classes_are_scored_as_in_scikit_learn(tokenizer):
    """With the unknown labels in the truth only."""
    task, examples = Classification(tokenizer, NAMES, 8), rows(TRUE)
    predictions = [{"label": label} for label in PREDICTED]
    scores = task.scores(examples, predictions)
    truth = TRUE, PREDICTED
    assert scores["accuracy"] == metrics.accuracy_score(*truth) == 2 / 7
    for average in ("macro", "weighted"):
        expected = metrics.f1_score(*truth, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(expected)
    for name in ("precision", "recall"):
        score = getattr(metrics, f"{name}_score")(*truth, average="macro", zero_division=0)
        assert scores[f"{name}_macro"] == pytest.approx(score)
    assert scores["matthews"] == pytest.approx(metrics.matthews_corrcoef(*truth))
    assert all_label_names(examples, NAMES) == (*NAMES, "even", "odd")
    lines = task.report(examples, predictions).splitlines()
    assert [line.split()[0] for line in lines[2:7]] == [*NAMES, "even", "odd"]
    assert lines[6].split()[1:] == ["0.0000", "0.0000", "0.0000", "2"]
    items = task.encode(examples).items
    assert [int(item.labels) for item in items] == [1, 4, 0, 2, 3, 1, 4]


def test_numbers_still_stand_for_names(tokenizer):
    task = Classification(tokenizer, NAMES, 8)
    assert task.targets(rows(["1", "7", "so", "neg"])).tolist() == [1, 3, 2, 0]


def test_several_labels_are_scored_as_in_scikit_learn(tokenizer):
    task = MultiLabel(tokenizer, ("a", "b"), 8)
    examples = rows([("a", "x"), ("b",), (), ("a", "b"), ("x",)])
    predicted = [["a"], ["a", "b"], [], ["a", "b"], []]
    scores = task.scores(examples, [{"labels": labels} for labels in predicted])
    true = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]])
    found = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert scores["accuracy"] == metrics.accuracy_score(true, found) == 2 / 5
    for average in ("micro", "macro", "weighted"):
        expected = metrics.f1_score(true, found, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(expected)


def test_unknown_entities_are_missed(tokenizer):
    task = Tagging(tokenizer, ("B-PER", "I-PER", "O"), 16)
    examples = [TagExample("", ("the", "cat", "sat"), ("B-PER", "O", "B-ORG"))]
    assert len(task.encode(examples).items) == 1
    scores = task.scores(examples, [{"tags": ["B-PER", "O", "O"]}])
    assert (scores["entity_precision"], scores["entity_recall"]) == (1, 0.5)
    assert scores["entities"]["ORG"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}


def test_evaluate_counts_them_as_wrong(folders, tmp_path):
    path, lines = tmp_path / "x.tsv", []
    path.write_text("the cat\tyes\na dog\todd\n")
    config = {"model": str(folders["classify"]), "eval_file": str(path)}
    with pytest.raises(UserError, match=r"unknown labels: odd \(1\)\. Fix .*unknown_labels=wrong"):
        evaluate(EvaluateConfig(**config), lines.append)
    scores = evaluate(EvaluateConfig(**config, unknown_labels="wrong"), lines.append)
    assert scores["accuracy"] in (0, 0.5) and scores["recall_macro"] <= 1 / 4
    assert "note: 1 of 2 examples have unknown labels and count as wrong: odd (1)" in lines
    assert "odd" in lines[-1]
