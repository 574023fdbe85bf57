"""Metrics against scikit-learn, scipy, seqeval and numbers counted by hand."""

import warnings

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

from kbert.data.tag_schemes import tag_scheme
from kbert.tasks.metrics import (
    classification_report_text,
    classification_scores,
    entity_report_text,
    entity_scores,
    multilabel_scores,
    regression_scores,
)

pytestmark = pytest.mark.smoke


ROUNDING = 1e-12  # float64, another order of operations


def plain(scores):
    return all(type(value) is float for value in scores.values())


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Classes


def test_classes_by_hand():
    # class 1: 3 right of 4 predicted and of 5 there
    labels = [1, 1, 1, 1, 1, 0, 0, 0]
    scores = classification_scores(labels, [1, 1, 1, 0, 0, 1, 0, 0], 2)
    assert plain(scores)
    assert scores["accuracy"] == 5 / 8
    assert scores["f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert scores["f1_macro"] == pytest.approx((6 / 9 + 4 / 7) / 2)
    assert scores["f1_weighted"] == pytest.approx((5 * 6 / 9 + 3 * 4 / 7) / 8)
    assert scores["precision_macro"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert scores["recall_macro"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert scores["matthews"] == pytest.approx((3 * 2 - 1 * 2) / np.sqrt(4 * 5 * 3 * 4))


def test_classes_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 5, 83), rng.integers(0, 5, 83)
    scores = classification_scores(labels, predictions, 5)
    assert "f1" not in scores
    for average in ("macro", "weighted"):
        expected = sklearn.metrics.f1_score(labels, predictions, average=average)
        assert scores[f"f1_{average}"] == pytest.approx(expected, abs=ROUNDING)
    expected = sklearn.metrics.matthews_corrcoef(labels, predictions)
    assert scores["matthews"] == pytest.approx(expected, abs=ROUNDING)


def test_a_class_that_is_absent_counts_as_0():
    scores = classification_scores([0, 0, 2], [0, 0, 2], 4)
    assert (scores["accuracy"], scores["f1_weighted"], scores["f1_macro"]) == (1, 1, 0.5)


def test_one_class_alone():
    scores = classification_scores([0, 0], [0, 0], 2)
    assert plain(scores) and (scores["accuracy"], scores["f1"], scores["matthews"]) == (1, 0, 0)


def test_the_report_has_all_names():
    text = classification_report_text([0, 2, 2], [0, 2, 0], ["bad", "so so", "good"])
    rows = [line.split() for line in text.splitlines()]
    assert ["bad", "0.5000", "1.0000", "0.6667", "1"] in rows
    assert ["so", "so", "0.0000", "0.0000", "0.0000", "0"] in rows
    assert ["accuracy", "0.6667", "3"] in rows
    expected = classification_scores([0, 2, 2], [0, 2, 0], 3)["f1_macro"]
    assert [row[4] for row in rows if row[:1] == ["macro"]] == [f"{expected:.4f}"]


# Numbers


def test_regression():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=37).round(1)  # with ties
    predictions = (targets + rng.normal(size=37)).astype(np.float32)
    scores = regression_scores(targets, predictions)
    assert plain(scores)
    assert scores["pearson"] == pytest.approx(np.corrcoef(targets, predictions)[0, 1], abs=1e-9)
    ranks = stats.rankdata(targets), stats.rankdata(predictions)
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
    assert scores["spearman"] != pytest.approx(scores["pearson"], abs=1e-3)
    by_hand = regression_scores([1, 2, 3], [2, 2, 0])
    assert (by_hand["mse"], by_hand["mae"]) == (pytest.approx(10 / 3), pytest.approx(4 / 3))


@pytest.mark.parametrize(
    ("targets", "predictions"),
    [([1, 2, 3], [5, 5, 5]), ([2, 2], [1, 3]), ([1], [1]), ([1, 2], [np.nan, 1])],
)
def test_correlations_are_never_nan(targets, predictions):
    scores = regression_scores(targets, predictions)
    assert (scores["pearson"], scores["spearman"]) == (0, 0)


# Several labels


@pytest.mark.parametrize("C", [2, 6])
def test_several_labels_against_scikit_learn(C):
    rng = np.random.default_rng(0)
    targets, predictions = rng.random((41, C)) < 0.4, rng.random((41, C)) < 0.5
    targets[:, 0] = predictions[:, 0] = False
    scores = multilabel_scores(targets, predictions)
    assert plain(scores)
    for average in ("micro", "macro", "weighted"):
        expected = sklearn.metrics.f1_score(targets, predictions, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(expected, abs=ROUNDING)
    expected = sklearn.metrics.accuracy_score(targets, predictions)
    assert scores["accuracy"] == pytest.approx(expected, abs=ROUNDING)


def test_one_label_is_not_taken_for_two_classes():
    scores = multilabel_scores([[True], [False], [False]], [[True], [True], [False]])
    assert scores["f1_micro"] == scores["f1_macro"] == pytest.approx(2 / 3)


def test_no_label_at_all():
    scores = multilabel_scores(np.zeros((3, 2), bool), np.zeros((3, 2), bool))
    assert scores == {"accuracy": 1, "f1_micro": 0, "f1_macro": 0, "f1_weighted": 0}


# Entities


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("O I-PER I-PER", [("PER", 1, 3)]),  # a lone I- starts one
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # so does another type
        ("I-PER O I-PER", [("PER", 0, 1), ("PER", 2, 3)]),
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
    ],
)
def test_spans(tags, spans):
    scheme = tag_scheme(["O", *tags.split()])
    assert scheme.spans(tags.split()) == spans


def rows(text):
    return [line.split() for line in text.split(" | ")]


def test_entities_by_hand():
    tags = rows("B-PER I-PER O B-LOC | O B-LOC O | B-PER O O")
    predictions = rows("B-PER I-PER O B-PER | O B-LOC I-LOC | B-PER O B-ORG")
    scores = entity_scores(tags, predictions)
    # there: 4. Predicted: 5. Right: PER 0-2 of the first, PER 0-1 of the third.
    assert scores.pop("entities") == {
        "LOC": {"precision": 0, "recall": 0, "f1": 0, "support": 2},
        "ORG": {"precision": 0, "recall": 0, "f1": 0, "support": 0},
        "PER": {"precision": 2 / 3, "recall": 1, "f1": 0.8, "support": 2},
    }
    assert plain(scores)
    assert scores == {
        "entity_f1": pytest.approx(4 / 9),
        "entity_precision": 2 / 5,
        "entity_recall": 2 / 4,
        "accuracy": 7 / 10,
        "entity_f1_strict": pytest.approx(4 / 9),
    }


def test_the_same_place_in_another_text_is_another_entity():
    scores = entity_scores(rows("B-PER O | O O"), rows("O O | B-PER O"))
    assert scores["entity_f1"] == 0 and scores["accuracy"] == 0.5


@pytest.mark.parametrize("predicted", ["O O", "O B-X"])
def test_no_entity_is_there(predicted):
    scores = entity_scores([["O", "O"]], [predicted.split()])
    assert scores["entity_f1"] == 0  # and not the scores of plain tags
    assert "micro avg" in entity_report_text([["O", "O"]], [predicted.split()])


def test_tags_that_the_model_lacks():
    """They change neither the meaning of its labels nor the kind of the scores."""
    names, predictions = ("O", "B_X", "I_X"), rows("B_X I_X O O O")
    for tag in ("B-Y", "Y"):
        scores = entity_scores([["B_X", "I_X", "O", "O", tag]], predictions, names)
        assert scores["entity_recall"] == 1 / 2 and scores["entity_precision"] == 1
        assert scores["entities"]["Y"]["support"] == 1
    scores = entity_scores([["D", "O"]], [["D", "N"]], ("D", "N"))
    assert scores["accuracy"] == 0.5 and "entity_f1" not in scores


def test_rows_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        entity_scores([["O", "B-X"]], [["O"]])


def test_plain_tags():
    tags, predictions = rows("DET NOUN VERB | NOUN"), rows("DET NOUN NOUN | NOUN")
    scores = entity_scores(tags, predictions)
    assert plain(scores)
    assert scores == {
        "accuracy": 0.75,
        "f1_weighted": pytest.approx((1 + 2 * 0.8 + 0) / 4),
        "f1_macro": pytest.approx((1 + 0.8 + 0) / 3),
    }
    lines = [line.split() for line in entity_report_text(tags, predictions).splitlines()]
    assert ["NOUN", "0.6667", "1.0000", "0.8000", "2"] in lines


def test_the_report_of_entities():
    tags = rows("B-PER I-PER O B-LOC | O B-LOC O | B-PER O O")
    predictions = rows("B-PER I-PER O B-PER | O B-LOC I-LOC | B-PER O B-ORG")
    assert entity_report_text(tags, predictions) == (
        "              precision    recall  f1-score   support\n"
        "\n"
        "         LOC     0.0000    0.0000    0.0000         2\n"
        "         ORG     0.0000    0.0000    0.0000         0\n"
        "         PER     0.6667    1.0000    0.8000         2\n"
        "\n"
        "   micro avg     0.4000    0.5000    0.4444         4\n"
        "   macro avg     0.2222    0.3333    0.2667         4\n"
        "weighted avg     0.3333    0.5000    0.4000         4\n"
    )


def test_entities_against_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    rng = np.random.default_rng(0)
    for _ in range(200):
        types = ("PER", "LOC", "A-B")[: rng.integers(1, 4)]
        pool = np.array(["O", "O", *(f"{start}-{type}" for type in types for start in "BI")])
        lengths = rng.integers(1, 14, 5)
        tags = [pool[rng.integers(0, len(pool), length)].tolist() for length in lengths]
        predictions = [
            np.where(rng.random(len(row)) < 0.7, row, rng.choice(pool, len(row))).tolist()
            for row in tags
        ]
        scores = entity_scores(tags, predictions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("f1", "precision", "recall"):
                expected = getattr(metrics, f"{name}_score")(tags, predictions)
                assert scores[f"entity_{name}"] == pytest.approx(expected, abs=ROUNDING)
