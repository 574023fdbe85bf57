"""The tasks: items spelled out, losses against plain numpy, predictions and scores."""

import json
import types

import numpy as np
import pytest

from kbert.data.examples import ChoiceExample, QuestionExample, TagExample, TextExample
from kbert.errors import UserError
from kbert.tasks import names, registry
from kbert.tasks.choice import Choice
from kbert.tasks.classify import Classification
from kbert.tasks.labels import check_all_present, keep_known_labels, label_names
from kbert.tasks.multilabel import MultiLabel
from kbert.tasks.qa import QuestionAnswering
from kbert.tasks.registry import (
    make_task,
    read_task_settings,
    task_from_settings,
    write_task_settings,
)
from kbert.tasks.regress import Regression
from kbert.tasks.tag import Tagging
from kbert.tokenizer import BertTokenizer

rng = np.random.default_rng(0)


@pytest.fixture
def tokenizer(vocab_file):
    return BertTokenizer(vocab_file)


def words(tokenizer, ids):
    return " ".join(tokenizer.vocab[i] for i in ids)


def cross_entropy(logits, labels):
    logits = logits - logits.max(axis=-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]


def test_texts_are_those_of_the_tokenizer(tokenizer):
    examples = [TextExample("", "the cat sat", None, "b"), TextExample("", "a mat", None, "a")]
    items = Classification(tokenizer, ("a", "b"), 5).encode(examples).items
    assert [words(tokenizer, i.input_ids) for i in items] == [
        "[CLS] the cat sat [SEP]",
        "[CLS] a mat [SEP]",
    ]
    assert [int(i.labels) for i in items] == [1, 0]
    assert [float(i.label_weights) for i in items] == [1, 1]


def test_pairs_are_cut_at_the_longer_part_and_weighted(tokenizer):
    example = TextExample("", "the cat sat on a mat", "dog ran", "b")
    (item,) = Classification(tokenizer, ("a", "b"), 8).encode([example], np.array([0.5, 3.0])).items
    assert words(tokenizer, item.input_ids) == "[CLS] the cat sat [SEP] dog ran [SEP]"
    assert item.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert float(item.label_weights) == 3


def test_classification(tokenizer):
    task = Classification(tokenizer, ("neg", "pos", "so"), 8)
    logits, labels = rng.normal(size=(4, 3)).astype("float32"), np.int32([2, 0, 1, 1])
    losses, right = task.losses({"logits": logits}, labels)
    np.testing.assert_allclose(losses, cross_entropy(logits, labels), rtol=1e-5)
    np.testing.assert_array_equal(right, logits.argmax(1) == labels)
    outputs = [{"logits": np.log(np.float32([0.2, 0.7, 0.1]))}]
    (found,) = task.predictions([None], None, outputs)
    assert found["label"] == "pos" and found["score"] == pytest.approx(0.7)
    assert found["scores"] == pytest.approx({"neg": 0.2, "pos": 0.7, "so": 0.1})
    examples = [TextExample("", "a", None, name) for name in ("pos", "so")]
    predictions = [{"label": "pos"}, {"label": "pos"}]
    assert task.scores(examples, predictions)["accuracy"] == 0.5
    assert "pos     0.5000    1.0000" in task.report(examples, predictions)
    assert task.config_fields() == {
        "num_labels": 3,
        "label_names": ("neg", "pos", "so"),
        "problem_type": "single_label_classification",
    }


def test_regression(tokenizer):
    task = Regression(tokenizer, None, 8)
    (item,) = task.encode([TextExample("", "a", "a", 2.5)]).items
    assert item.labels == np.float32(2.5) and item.labels.dtype == np.float32
    losses, _ = task.losses({"logits": np.float32([[1], [4]])}, np.float32([2.5, 2]))
    assert losses.numpy().tolist() == [2.25, 4]
    examples = [TextExample("", "a", None, v) for v in (1.0, 2.0, 4.0)]
    predictions = task.predictions(examples, None, [{"logits": np.float32([v])} for v in (0, 2, 3)])
    scores = task.scores(examples, predictions)
    assert scores["spearman"] == pytest.approx(1) and scores["mse"] == pytest.approx(2 / 3)
    assert task.config_fields()["num_labels"] == 1


def test_several_labels(tokenizer):
    task = MultiLabel(tokenizer, ("x", "y", "z"), 8)
    examples = [TextExample("", "a", None, ("x", "z")), TextExample("", "a", None, ())]
    items = task.encode(examples).items
    assert [i.labels.tolist() for i in items] == [[1, 0, 1], [0, 0, 0]]
    logits = rng.normal(size=(2, 3)).astype("float32")
    labels = np.float32([[1, 0, 1], [0, 0, 0]])
    losses, right = task.losses({"logits": logits}, labels)
    shares = 1 / (1 + np.exp(-logits))
    expected = -(labels * np.log(shares) + (1 - labels) * np.log(1 - shares)).mean(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(right, ((logits > 0) == (labels > 0)).all(axis=1))
    predictions = task.predictions(examples, None, [{"logits": np.float32([2, -1, 0.1])}] * 2)
    assert [found["labels"] for found in predictions] == [["x", "z"]] * 2
    assert task.scores(examples, predictions)["accuracy"] == 0.5


def test_choices(tokenizer):
    task = Choice(tokenizer, None, 9)
    examples = [ChoiceExample("", "the cat", ("sat on a mat", "ran"), 1)]
    (item,) = task.encode(examples).items
    assert [words(tokenizer, row) for row in item.input_ids] == [
        "[CLS] the cat [SEP] sat on a mat [SEP]",
        "[CLS] the cat [SEP] ran [SEP] [PAD] [PAD] [PAD]",
    ]
    assert item.token_type_ids[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert item.labels == 1
    predictions = task.predictions(examples, None, [{"logits": np.float32([0, 3])}])
    assert predictions[0]["choice"] == 1 and predictions[0]["text"] == "ran"
    assert task.scores(examples, predictions) == {"accuracy": 1.0}


TAGS = ("B-X", "I-X", "O")


def test_tags_of_words(tokenizer):
    """The pieces of a word: the first one counts, and each that BERT takes for a new word."""
    task = Tagging(tokenizer, TAGS, 12)
    example = TagExample("", ("the", "cat.dog", "unwanted", "\u200b"), ("O", "B-X", "I-X", "O"))
    encoded = task.encode([example])
    (item,) = encoded.items
    assert words(tokenizer, item.input_ids) == ("[CLS] the cat . dog un ##want ##ed [UNK] [SEP]")
    assert item.label_weights.tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 1, 0]
    kept = [(TAGS[label]) for label in item.labels[item.label_weights > 0]]
    assert kept == ["O", "B-X", "I-X", "I-X", "I-X", "O"]
    logits = np.zeros((10, 3), np.float32)
    logits[[1, 2, 5, 8], [2, 0, 1, 2]] = 1
    (found,) = task.predictions([example], encoded, [{"logits": logits}])
    assert found == {"words": list(example.words), "tags": ["O", "B-X", "I-X", "O"]}
    assert task.scores([example], [found])["entity_f1"] == 1
    assert task.metric == "entity_f1"


def test_words_that_were_cut_off_are_outside(tokenizer):
    task = Tagging(tokenizer, TAGS, 5)
    example = TagExample("", ("the", "unwanted", "cat"), ("B-X", "B-X", "B-X"))
    encoded = task.encode([example])
    assert words(tokenizer, encoded.items[0].input_ids) == "[CLS] the un ##want [SEP]"
    assert encoded.items[0].label_weights.tolist() == [0, 1, 1, 0, 0]
    logits = np.float32([[1, 0, 0]] * 5)
    (found,) = task.predictions([example], encoded, [{"logits": logits}])
    assert found["tags"] == ["B-X", "B-X", "O"]


def test_parts_of_speech_are_scored_by_word(tokenizer):
    task = Tagging(tokenizer, ("D", "N"), 8)
    assert task.metric == "accuracy"
    example = TagExample("", ("the", "cat"), ("D", "N"))
    scores = task.scores([example], [{"tags": ["D", "D"]}])
    assert scores["accuracy"] == 0.5 and "entity_f1" not in scores


def logits_of(task, item, tag_of_word):
    """Logits that give each token the tag of its word, others the first one."""
    logits = np.zeros((item.length + 3, len(task.label_names)), np.float32)
    for place, i in enumerate(item.input_ids):
        tag = tag_of_word.get(task.tokenizer.vocab[i])
        if tag:
            logits[place, task.label_names.index(tag)] = 9
    return {"logits": logits}


@pytest.mark.parametrize("length", [40, 7])
def test_spans_of_texts_as_they_are(tokenizer, length):
    """Windows make no difference where what is said of a token is the same in each of them."""
    task = Tagging(tokenizer, TAGS, length)
    texts = ["The unwanted  cat, dog", "", "é the the the mat the the cat ran on the the un dog."]
    tags = {"cat": "B-X", "dog": "I-X", "un": "I-X", "##want": "O", "##ed": "O"}
    tags |= {word: "O" for word in ("the", ",", ".", "mat", "ran", "on", "[UNK]")}
    encoded = task.text_windows(texts)
    outputs = [logits_of(task, item, tags) for item in encoded.items]
    found = task.spans(texts, encoded, outputs)
    assert [[(s["text"], s["byte_start"], s["byte_end"]) for s in spans] for spans in found] == [
        [("unwanted", 4, 12), ("cat", 14, 17), ("dog", 19, 22)],
        [],
        [("cat", 27, 30), ("un dog", 46, 52)],
    ]
    for text, spans in zip(texts, found, strict=True):
        for span in spans:
            assert text[span["start"] : span["end"]] == span["text"]
            assert span["label"] == "X" and 0.99 < span["score"] <= 1


def test_spans_of_plain_tags_are_words(tokenizer):
    task = Tagging(tokenizer, ("D", "N"), 20)
    encoded = task.text_windows(["the unwanted cat"])
    tags = {"the": "D", "un": "N", "cat": "N"}
    (spans,) = task.spans(["the unwanted cat"], encoded, [logits_of(task, encoded.items[0], tags)])
    assert [(s["label"], s["text"]) for s in spans] == [
        ("D", "the"),
        ("N", "unwanted"),
        ("N", "cat"),
    ]


def test_answers(tokenizer):
    from kbert.data.examples import Answer

    context = "The unwanted cat sat on a mat."
    example = QuestionExample("", "q", "the dog", context, (Answer("cat sat", 13),))
    task = QuestionAnswering(tokenizer, 20)
    encoded = task.encode([example])
    (item,) = encoded.items
    begin, end = item.labels
    assert words(tokenizer, item.input_ids[begin : end + 1]) == "cat sat"
    start_logits, end_logits = (np.eye(item.length, dtype=np.float32)[i] * 9 for i in item.labels)
    outputs = {"start_logits": start_logits[None], "end_logits": end_logits[None]}
    losses, right = task.losses(outputs, item.labels[None])
    expected = cross_entropy(start_logits, begin) + cross_entropy(end_logits, end)
    np.testing.assert_allclose(losses, [expected / 2], rtol=1e-4)
    assert right.numpy().tolist() == [1]
    predictions = task.predictions(
        [example], encoded, [{"start_logits": start_logits, "end_logits": end_logits}]
    )
    assert predictions[0]["text"] == "cat sat"
    assert task.scores([example], predictions) == {"exact_match": 100, "f1": 100}


def test_answers_without_offset_are_scored(tokenizer):
    """Evaluation needs their text only; they count as not in a window."""
    from kbert.data.examples import Answer

    example = QuestionExample("", "q", "the dog", "the cat sat", (Answer("cat", None),))
    task = QuestionAnswering(tokenizer, 20)
    (item,) = task.encode([example]).items
    assert item.labels.tolist() == [0, 0]
    assert task.scores([example], [{"text": "cat"}]) == {"exact_match": 100, "f1": 100}


def test_the_threshold_of_no_answer(tokenizer):
    """Nothing is sought where an answer is scored; it is where it is asked for."""
    from kbert.data.examples import Answer

    examples = [
        QuestionExample("", "a", "dog", "the cat", (Answer("cat", 4),)),
        QuestionExample("", "b", "mat", "the cat", (), True),
    ]
    span = {"text": "cat", "start": 4, "end": 7, "score": 1.0}
    predictions = [
        {**span, "no_answer_score": 2.0, "candidates": [span]},
        {**span, "no_answer_score": 3.0, "candidates": [span]},
    ]
    task = QuestionAnswering(tokenizer, allow_no_answer=True)
    scores = task.scores(examples, predictions)
    assert scores["exact_match"] == 50 and scores["null_threshold"] == 0
    task.find_threshold(examples, predictions)
    assert 1 <= task.null_threshold < 2


def test_label_names_are_sorted():
    def examples(*labels):
        return [TextExample("", "a", None, label) for label in labels]

    assert label_names(examples("10", "9", "b", "a", "9")) == ("9", "10", "a", "b")
    assert label_names(examples(("y", "x"), ())) == ("x", "y")
    assert label_names([TagExample("", ("a",), ("O",))]) == ("O",)


def test_labels_that_are_not_known():
    examples = [
        TextExample("a.tsv, line 1", "a", None, "pos"),
        TextExample("a.tsv, line 2", "a", None, "so"),
        TextExample("a.tsv, line 3", "a", None, "1"),
    ]
    with pytest.raises(UserError) as caught:
        keep_known_labels(examples, ("neg", "pos"), False, print)
    assert str(caught.value) == (
        "a.tsv, line 2: the label 'so' is not one of the 2 labels: neg, pos. 1 of 3 examples have "
        "unknown labels: so (1). Fix them, or skip such examples with --skip_bad_lines."
    )
    lines = []
    kept = keep_known_labels(examples, ("neg", "pos"), True, lines.append)
    assert [e.label for e in kept] == ["pos", "1"]  # a number stands for a name that is none
    assert lines == [
        "note: 1 of 3 examples are skipped; the first: a.tsv, line 2: the label 'so' is not one "
        "of the 2 labels: neg, pos."
    ]
    with pytest.raises(UserError, match=r"no example has a known label; a\.tsv, line 1"):
        keep_known_labels(examples, ("7", "8"), True, print)


def test_labels_without_an_example():
    examples = [TextExample("", "a", None, "x")]
    with pytest.raises(
        UserError, match=r"a\.tsv has no example with the label y, z, so the model cannot learn it"
    ):
        check_all_present(examples, ("x", "y", "z"), "a.tsv")
    check_all_present(examples, ("x",), "a.tsv")


@pytest.mark.parametrize("name", ["classify", "pair", "regress", "multilabel", "tag", "choice"])
def test_folders_say_what_they_are_for(tokenizer, tmp_path, name):
    config = types.SimpleNamespace(task=name, max_seq_length=17)
    task = make_task(config, tokenizer, ("a", "b"))
    write_task_settings(tmp_path, task)
    expected = {"task": name, "max_seq_length": 17, "takes_pairs": name == "pair"}
    assert read_task_settings(tmp_path) == expected
    bert_config = types.SimpleNamespace(label_names=None, num_labels=3)
    again = task_from_settings(read_task_settings(tmp_path), tokenizer, bert_config)
    assert type(again) is type(task) and again.max_seq_length == 17
    assert again.label_names == ("0", "1", "2")


def test_the_settings_of_answers_are_kept(tokenizer, tmp_path):
    task = QuestionAnswering(tokenizer, 99, 44, 33, 22, True, null_threshold=1.5)
    write_task_settings(tmp_path, task)
    again = task_from_settings(read_task_settings(tmp_path), tokenizer, None)
    names = ("max_seq_length", "doc_stride", "max_query_length", "max_answer_length")
    assert [getattr(again, name) for name in names] == [99, 44, 33, 22]
    assert again.allow_no_answer and again.null_threshold == 1.5


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"task": "x", "max_seq_length": 9}', '{"task": "qa"}']
)
def test_a_task_file_that_is_none(tmp_path, text):
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(UserError, match=r"task.json is not a file written by kbert.finetune"):
        read_task_settings(tmp_path)
    (tmp_path / "task.json").unlink()
    assert read_task_settings(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 4}, r"'max_seq_length' must be an integer from 5 to .* - 1; got 4"),
        ({"max_seq_length": "9"}, r"'max_seq_length' must be an integer from 5 to .*; got '9'"),
        ({"takes_pairs": 1}, r"'takes_pairs' must be true or false; got 1"),
        ({"doc_stride": 0}, r"'doc_stride' must be an integer from 1 to 2\*\*31 - 1; got 0"),
        ({"null_threshold": 10**400}, r"'null_threshold' must be a number between .*; got 1000"),
        ({"null_threshold": float("nan")}, r"'null_threshold' must be a number between .*; got"),
        ({"doc_strode": 3}, r"'doc_strode' must be absent; got 3"),
    ],
)
def test_settings_of_a_task_that_cannot_be(tmp_path, changes, message):
    values = {"task": "qa", "max_seq_length": 9} | changes
    (tmp_path / "task.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"task.json: {message}.* Fix or remove it\."):
        read_task_settings(tmp_path)


def test_labels_of_thousands_of_digits_are_texts():
    examples = [TextExample("", "a", label=label) for label in ("9" * 5000, "7", "-3", "a")]
    assert label_names(examples) == ("-3", "7", "9" * 5000, "a")


def test_the_names_without_tensorflow_are_those_of_the_classes():
    assert tuple(kind.name for kind in registry.BUILT_IN) == names.BUILT_IN
