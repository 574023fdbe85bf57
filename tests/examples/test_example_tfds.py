"""Examples of TensorFlow Datasets."""

import sys
import types

import pytest
import tensorflow as tf
from example_files import settings

from kbert.data.examples import Answer, QuestionExample, TagExample, TextExample
from kbert.errors import UserError
from kbert.tasks.examples import read_split


@pytest.fixture
def load(monkeypatch):
    """Makes `tfds.load` give a data set of features; returns what it was called with."""
    tfds = pytest.importorskip("tensorflow_datasets")
    calls = []

    def load(make_features, make_examples):
        def of_memory(name, split, shuffle_files, with_info):
            calls.append((name, split, shuffle_files, with_info))
            info = types.SimpleNamespace(features=make_features(tfds.features))
            signature = {
                key: tf.TensorSpec(None, dtype) if not isinstance(dtype, dict) else dtype
                for key, dtype in make_examples()[0].items()
            }
            dataset = tf.data.Dataset.from_generator(
                lambda: iter(make_examples()[1]), output_signature=signature
            )
            return dataset, info

        monkeypatch.setattr(tfds, "load", of_memory)
        return calls

    return load


def test_tfds_texts(load):
    calls = load(
        lambda f: f.FeaturesDict({"sentence": f.Text(), "label": f.ClassLabel(names=["no", "ja"])}),
        lambda: (
            {"sentence": tf.string, "label": tf.int64},
            [{"sentence": "天 a", "label": 1}, {"sentence": "b", "label": 0}],
        ),
    )
    name = "tfds:glue/sst2:validation"
    assert read_split(name, settings("classify")) == [
        TextExample(f"{name}, example 1", "天 a", None, "ja"),
        TextExample(f"{name}, example 2", "b", None, "no"),
    ]
    read_split("tfds:glue/sst2", settings("classify"))
    assert calls == [("glue/sst2", s, False, True) for s in ("validation", "train")]


def test_tfds_split_without_labels(load):
    load(
        lambda f: f.FeaturesDict({"text": f.Text(), "label": f.ClassLabel(names=["no", "ja"])}),
        lambda: ({"text": tf.string, "label": tf.int64}, [{"text": "a", "label": -1}]),
    )
    assert read_split("tfds:x", settings("classify"), labeled=False)[0].label is None
    with pytest.raises(UserError, match=r"^tfds:x, example 1: the label is empty\."):
        read_split("tfds:x", settings("classify"))


def test_tfds_target_and_bytes(load):
    reports = []
    load(
        lambda f: f.FeaturesDict({"text": f.Text(), "score": f.Scalar(tf.float32)}),
        lambda: (
            {"text": tf.string, "score": tf.float32},
            [{"text": b"\xff", "score": 1}, {"text": "b", "score": 2.5}],
        ),
    )
    found = read_split("tfds:x", settings("regress", skip_bad_lines=True), True, reports.append)
    assert found == [TextExample("tfds:x, example 2", "b", None, 2.5)]
    assert reports == [
        "note: 1 of 2 examples of tfds:x is skipped; the first: tfds:x, example 1: bytes that are "
        "not UTF-8."
    ]


def test_tfds_tags(load):
    load(
        lambda f: f.FeaturesDict(
            {
                "tokens": f.Sequence(f.Text()),
                "ner": f.Sequence(f.ClassLabel(names=["O", "B-PER"])),
            }
        ),
        lambda: ({"tokens": tf.string, "ner": tf.int64}, [{"tokens": ["a", "b"], "ner": [1, 0]}]),
    )
    expected = [TagExample("tfds:conll2003:train, example 1", ("a", "b"), ("B-PER", "O"))]
    assert read_split("tfds:conll2003:train", settings("tag")) == expected


def test_tfds_questions(load):
    load(
        lambda f: f.FeaturesDict(
            {
                "id": f.Text(),
                "question": f.Text(),
                "context": f.Text(),
                "answers": f.Sequence({"text": f.Text(), "answer_start": f.Scalar(tf.int32)}),
            }
        ),
        lambda: (
            {
                "id": tf.string,
                "question": tf.string,
                "context": tf.string,
                "answers": {
                    "text": tf.TensorSpec([None], tf.string),
                    "answer_start": tf.TensorSpec([None], tf.int32),
                },
            },
            [
                {
                    "id": "q",
                    "question": "?",
                    "context": "天 cat",
                    "answers": {"text": ["cat", "天"], "answer_start": [2, 0]},
                }
            ],
        ),
    )
    answers = (Answer("cat", 2), Answer("天", 0))
    assert read_split("tfds:squad", settings("qa")) == [
        QuestionExample("tfds:squad, example 1 (question q)", "q", "?", "天 cat", answers)
    ]


def test_tfds_errors(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(*args, **kwargs):
        raise ValueError("Unknown split 'dev'.\nmore")

    monkeypatch.setattr(tfds, "load", fail)
    with pytest.raises(UserError, match=r"^cannot load tfds:x:dev: Unknown split 'dev'\.$"):
        read_split("tfds:x:dev", settings("classify"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"tfds: inputs need tensorflow-datasets: pip install"):
        read_split("tfds:x", settings("classify"))
