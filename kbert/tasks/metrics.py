"""Metrics of the tasks, as dicts of name -> float; see `kbert.tasks.squad` for qa.

All metrics are in [0, 1], except correlations, errors and the support. A ratio of 0 / 0, such as
the precision of a class that is never predicted, counts as 0.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kbert.data.tag_schemes import tag_scheme

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def classification_scores(
    labels: "ArrayLike", predictions: "ArrayLike", C: int
) -> dict[str, float]:
    """Returns the classification metrics of GLUE and scikit-learn.

    Macro averages include all C classes: a class that neither occurs nor is predicted counts as 0,
    as in `classification_report_text` and in scikit-learn's multilabel metrics.

    Args:
        labels, predictions: (N,) int, class ids.
        C: number of classes.

    Returns:
        dict of accuracy, f1_weighted, f1_macro, precision_macro, recall_macro and matthews (in
        [-1, 1]; 0 if labels and predictions are all the same class). With two classes also f1, the
        F1 of class 1.
    """
    from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support

    labels, predictions = np.asarray(labels), np.asarray(predictions)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=range(C), zero_division=0
    )
    scores = {
        "accuracy": np.mean(labels == predictions),
        "f1_weighted": np.average(f1, weights=support),
        "f1_macro": np.mean(f1),
        "precision_macro": np.mean(precision),
        "recall_macro": np.mean(recall),
        "matthews": 0.0,
    }
    if len(np.unique([labels, predictions])) > 1:
        scores["matthews"] = matthews_corrcoef(labels, predictions)
    if C == 2:
        scores["f1"] = f1[1]
    return _to_floats(scores)


def classification_report_text(
    labels: "ArrayLike", predictions: "ArrayLike", names: Sequence[str]
) -> str:
    """Returns scikit-learn's table of all classes, including classes that do not occur.

    Args:
        labels, predictions: (N,) int, class ids.
        names: names of the C classes.
    """
    return _report(labels, predictions, labels=range(len(names)), target_names=list(names))


def _report(true, predicted, **options):
    from sklearn.metrics import classification_report

    return classification_report(true, predicted, digits=4, zero_division=0, **options)


def regression_scores(targets: "ArrayLike", predictions: "ArrayLike") -> dict[str, float]:
    """Returns the correlations and the errors of predicted numbers.

    Args:
        targets, predictions: (N,) float.

    Returns:
        dict of pearson and spearman (in [-1, 1]; 0 if undefined, for example for constant input or
        a single example), mse and mae.
    """
    from scipy import stats

    targets, predictions = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    errors = predictions - targets
    return _to_floats(
        {
            "pearson": _correlation(stats.pearsonr, targets, predictions),
            "spearman": _correlation(stats.spearmanr, targets, predictions),
            "mse": np.mean(errors**2),
            "mae": np.mean(np.abs(errors)),
        }
    )


def _correlation(measure, a, b):
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about nearly constant input
        value = measure(a, b).statistic
    return value if np.isfinite(value) else 0.0


def ranking_scores(ranks: Sequence[Sequence[int]]) -> dict[str, float]:
    """Returns metrics of retrieval, as means over the queries.

    Args:
        ranks: for each query the ranks of its relevant texts, at least one, counted from 1.

    Returns:
        dict of accuracy@1, whether a relevant text ranks first; mrr@10, the reciprocal of the best
        rank, or 0 if it is above 10; recall@10, the fraction of the relevant texts with a rank of
        at most 10; and ndcg@10.
    """
    at, rows = 10, [np.sort(np.array(row)) for row in ranks]
    gains = 1 / np.log2(np.arange(2, at + 2))
    top = [row[row <= at] for row in rows]
    scores = {
        "accuracy@1": [row[0] == 1 for row in rows],
        f"mrr@{at}": [1 / row[0] if row[0] <= at else 0.0 for row in rows],
        f"recall@{at}": [len(best) / len(row) for best, row in zip(top, rows, strict=True)],
        f"ndcg@{at}": [
            gains[best - 1].sum() / gains[: len(row)].sum()
            for best, row in zip(top, rows, strict=True)
        ],
    }
    return _to_floats({name: np.mean(values) for name, values in scores.items()})


def relevance_scores(labels: "ArrayLike", scores: "ArrayLike") -> dict[str, float]:
    """Returns metrics for pairs that are relevant or not.

    Args:
        labels: (N,), 1 for relevant pairs, else 0.
        scores: (N,) float, in [0, 1].

    Returns:
        dict of average_precision, 0 if no pair is relevant, and accuracy, where a pair counts as
        relevant if its score is above 0.5.
    """
    from sklearn.metrics import average_precision_score

    labels, scores = np.asarray(labels) > 0.5, np.asarray(scores)
    precision = average_precision_score(labels, scores) if labels.any() else 0.0
    accuracy = np.mean((scores > 0.5) == labels)
    return _to_floats({"average_precision": precision, "accuracy": accuracy})


def multilabel_scores(targets: "ArrayLike", predictions: "ArrayLike") -> dict[str, float]:
    """Returns metrics for multi-label classification, from targets and predictions, (N, C) bool.

    They are accuracy (the share of texts whose labels are all correct), f1_micro, f1_macro and
    f1_weighted.
    """
    targets, predictions = np.asarray(targets, bool), np.asarray(predictions, bool)
    right = (targets & predictions).sum(axis=0)  # (C,)
    predicted, support = predictions.sum(axis=0), targets.sum(axis=0)
    f1 = _precision_recall_f1(right, predicted, support)[2]
    return _to_floats(
        {
            "accuracy": np.mean((targets == predictions).all(axis=1)),
            "f1_micro": _precision_recall_f1(right.sum(), predicted.sum(), support.sum())[2],
            "f1_macro": np.mean(f1),
            "f1_weighted": np.average(f1, weights=support) if support.any() else 0.0,
        }
    )


def _precision_recall_f1(right, predicted, support):
    """Returns precision, recall and F1 from counts (arrays or numbers); 0 / 0 is 0."""
    right, predicted, support = np.float64(right), np.float64(predicted), np.float64(support)
    return (
        right / np.maximum(predicted, 1),
        right / np.maximum(support, 1),
        2 * right / np.maximum(predicted + support, 1),
    )


def entity_scores(
    tags: Sequence[Sequence[str]],
    predictions: Sequence[Sequence[str]],
    label_names: Sequence[str] = (),
) -> dict[str, float | dict[str, dict[str, float]]]:
    """Returns entity metrics; an entity is correct if its type, start and end are correct.

    Args:
        tags, predictions: a list of str, the tags of the words, for each sentence.
        label_names: all tags of the model, which determine the tag scheme (see
            `kbert.data.tag_schemes`); if empty, `tags` and `predictions` determine it.

    Returns:
        dict of entity_f1, entity_precision, entity_recall (over all entities, as in conlleval and
        seqeval's default mode), accuracy (over words), entity_f1_strict (seqeval's strict mode,
        where entities that the scheme does not allow do not count) and "entities", a dict of type
        -> dict of precision, recall, f1 and support (int).
        If the tags mark no entities: accuracy, f1_weighted and f1_macro over words.
    """
    scheme = _scheme(tags, predictions, label_names)
    if scheme is None:
        return _word_scores(tags, predictions)
    counts = _entity_counts(tags, predictions, scheme.spans)
    strict = _entity_counts(tags, predictions, scheme.strict_spans)
    precision, recall, f1 = _precision_recall_f1(*_sum_counts(counts))
    scores = {
        "entity_f1": f1,
        "entity_precision": precision,
        "entity_recall": recall,
        "accuracy": _word_accuracy(tags, predictions),
        "entity_f1_strict": _precision_recall_f1(*_sum_counts(strict))[2],
    }
    entities = {}
    for type, numbers in counts.items():
        precision, recall, f1 = _precision_recall_f1(*numbers)
        entities[type] = _to_floats({"precision": precision, "recall": recall, "f1": f1})
        entities[type]["support"] = numbers[2]
    return {**_to_floats(scores), "entities": entities}


def entity_report_text(
    tags: Sequence[Sequence[str]],
    predictions: Sequence[Sequence[str]],
    label_names: Sequence[str] = (),
) -> str:
    """Returns scikit-learn's table, with a row for each entity type or tag, and the averages."""
    scheme = _scheme(tags, predictions, label_names)
    if scheme is None:
        return _report(*_flatten_tags(tags, predictions))
    counts = _entity_counts(tags, predictions, scheme.spans) or {"(none)": [0, 0, 0]}
    # scikit-learn gets each entity as a pair (label, prediction), where 0 means no entity.
    pairs = [(0, 0)]
    for number, (right, predicted, support) in enumerate(counts.values(), 1):
        pairs += [(number, number)] * right
        pairs += [(0, number)] * (predicted - right) + [(number, 0)] * (support - right)
    types = range(1, len(counts) + 1)
    return _report(*zip(*pairs, strict=True), labels=types, target_names=list(counts))


def _scheme(tags, predictions, label_names):
    """Returns the TagScheme of the label names, or else of the tags, extended to all tags."""
    seen = {tag for rows in (tags, predictions) for row in rows for tag in row}
    scheme = tag_scheme(label_names or seen)
    others = tag_scheme(seen.difference(label_names) | {"O"})
    if scheme and others:
        scheme = dataclasses.replace(scheme, roles={**others.roles, **scheme.roles})
    return scheme


def _sum_counts(counts):
    return np.sum([*counts.values(), (0, 0, 0)], axis=0)


def _entity_counts(tags, predictions, spans_of):
    """Returns a dict of type -> [correct, predicted, support], sorted by type."""
    counts = {}
    for row, predicted in zip(tags, predictions, strict=True):
        sets = set(spans_of(row)), set(spans_of(predicted))
        for index, spans in enumerate((sets[0] & sets[1], sets[1], sets[0])):
            for type, _, _ in spans:
                counts.setdefault(type, [0, 0, 0])[index] += 1
    return dict(sorted(counts.items()))


def _flatten_tags(tags, predictions):
    """Returns the tags of all words, and the predictions for them, as two lists."""
    pairs = [
        pair
        for row, predicted in zip(tags, predictions, strict=True)
        for pair in zip(row, predicted, strict=True)
    ]
    return [tag for tag, _ in pairs], [tag for _, tag in pairs]


def _word_accuracy(tags, predictions):
    pairs = zip(*_flatten_tags(tags, predictions), strict=True)
    return np.mean([tag == predicted for tag, predicted in pairs] or [0.0])


def _word_scores(tags, predictions):
    from sklearn.metrics import f1_score

    words = _flatten_tags(tags, predictions)
    return _to_floats(
        {
            "accuracy": _word_accuracy(tags, predictions),
            "f1_weighted": f1_score(*words, average="weighted", zero_division=0),
            "f1_macro": f1_score(*words, average="macro", zero_division=0),
        }
    )


def _to_floats(scores):
    return {name: float(value) for name, value in scores.items()}
