"""Held-out parts of the training data: by class, by context, the same for every worker."""

import collections
import types

import numpy as np
import pytest

from kbert.data.examples import QuestionExample, TagExample, TextExample
from kbert.data.splits import split_keys
from kbert.errors import UserError
from kbert.tasks.labels import rarest_labels
from kbert.train.finetuning_data import split_examples


def config(task="classify", **changes):
    settings = {"task": task, "seed": 0, "eval_fraction": 0.0, "folds": None, "fold": None}
    return types.SimpleNamespace(**settings | changes)


def rows(*labels):
    return [TextExample(f"{i}", "a", None, label) for i, label in enumerate(labels)]


def test_every_interval_of_keys_has_its_share_of_each_class():
    classes = [*"a" * 100, *"b" * 30, *"c" * 7]
    for seed in range(20):
        keys = split_keys(seed, classes)
        assert (keys >= 0).all() and (keys < 1).all()
        for begin in (0.0, 0.2, 0.9):
            inside = (begin <= keys) & (keys < begin + 0.1)
            counts = collections.Counter(np.array(classes)[inside])
            for name, share in (("a", 10), ("b", 3), ("c", 0.7)):
                assert abs(counts[name] - share) < 1


def test_the_keys_depend_on_the_seed_and_the_positions_alone():
    classes = ["a", "b"] * 30
    keys = split_keys(3, classes)
    np.testing.assert_array_equal(keys, split_keys(3, classes))
    assert not np.array_equal(keys, split_keys(4, classes))
    # Each class is shuffled, not taken in its order.
    assert np.abs(np.corrcoef(keys, np.arange(60))[0, 1]) < 0.5


def test_groups_are_not_split():
    groups = ["x", "y", "x", "z", "y", "x"]
    keys = split_keys(0, [None] * 6, groups)
    assert len(set(keys)) == 3 and keys[0] == keys[2] == keys[5] and keys[1] == keys[4]


def test_a_fraction_of_each_class_is_held_out():
    train = rows(*["neg", "pos"] * 50, *["so"] * 20, "once")
    parts = split_examples({"train": train, "test": rows("neg")}, config(eval_fraction=0.1))
    assert list(parts) == ["train", "eval", "test"] and len(parts["test"]) == 1
    counts = collections.Counter(row.label for row in parts["eval"])
    assert counts == {"neg": 5, "pos": 5, "so": 2}
    where = [row.where for name in ("train", "eval") for row in parts[name]]
    assert sorted(where, key=int) == [row.where for row in train]
    assert [row.where for row in parts["eval"]] == sorted(
        (row.where for row in parts["eval"]), key=int
    )


def test_every_example_is_in_one_fold():
    train, seen = rows(*["neg", "pos"] * 11), []
    for fold in range(1, 6):
        parts = split_examples({"train": train}, config(folds=5, fold=fold, eval_fraction=0.2))
        assert list(parts) == ["train", "eval", "test"]
        assert sum(map(len, parts.values())) == 22 and 4 <= len(parts["test"]) <= 6
        seen += [row.where for row in parts["test"]]
    assert sorted(seen, key=int) == [row.where for row in train]


def test_classes_of_other_tasks():
    """The rarest label of an example stands for it; a context is not divided."""
    tagged = [TagExample("", ("a", "b"), tags) for tags in (("O", "B-X"), ("O", "O"), ("O", "B-Y"))]
    assert rarest_labels(tagged) == ["B-X", "O", "B-Y"]
    assert rarest_labels(rows(("a", "b"), ("b",), ())) == ["a", "b", None]
    questions = [QuestionExample(f"{i}", f"{i}", "who ?", f"text {i // 4}") for i in range(40)]
    parts = split_examples({"train": questions}, config("qa", eval_fraction=0.2))
    contexts = [{row.context for row in parts[name]} for name in ("train", "eval")]
    assert list(map(len, contexts)) == [8, 2] and not set.intersection(*contexts)
    numbers = [TextExample(f"{i}", "a", None, float(i)) for i in range(30)]
    parts = split_examples({"train": numbers}, config("regress", eval_fraction=0.1))
    assert len(parts["eval"]) == 3


def test_splits_that_leave_nothing():
    with pytest.raises(UserError, match=r"--eval_fraction=0\.001 would move 0 of the 4 training"):
        split_examples({"train": rows(*"aabb")}, config(eval_fraction=0.001, seed=1))
    with pytest.raises(
        UserError, match=r"--folds=9 would move 0 of the 4 .* leave one of the two sets"
    ):
        for fold in range(1, 10):
            split_examples({"train": rows(*"aabb")}, config(folds=9, fold=fold))
