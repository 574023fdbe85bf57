"""The spans that models with labels of each scheme find, in Python, in graphs and in HF."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow

import kbert
from kbert.data.examples import TagExample
from kbert.serving import saved_model
from kbert.tasks.span_ops import tagged_spans, text_windows
from kbert.tasks.tag import Tagging
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "un", "##want", "##ed", ".", ","]
TYPES = ("LOC", "PER")
NAMES = {
    "IOB2": ("B-LOC", "B-PER", "I-LOC", "I-PER", "O"),
    "lower": ("b_loc", "b_per", "i_loc", "i_per", "o"),
    "BIOES": ("O", *(f"{letter}-{type}" for type in TYPES for letter in "BIES")),
    "BILOU": ("O", *(f"{type}-{letter}" for type in TYPES for letter in "BILU")),
    "BMES": ("O", *(f"{letter}-{type}" for type in TYPES for letter in "BMES")),
    "plain": ("LOC", "O", "PER"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    write_vocab([*SPECIAL_TOKENS, *WORDS], path)
    return kbert.BertTokenizer(path)


@pytest.mark.parametrize("scheme", ["IOB2", "BMES", "plain", *slow("lower", "BIOES", "BILOU")])
def test_spans_of_a_graph_are_those_of_the_scheme(tokenizer, scheme):
    """One home for the meaning of tags: TagScheme.spans."""
    task, rng = Tagging(tokenizer, NAMES[scheme], 64), np.random.default_rng(0)
    assert task.metric == "entity_f1"
    texts = [" ".join(rng.choice(WORDS[:8], 30)) for _ in range(8)]
    windows = text_windows(texts, tokenizer, 64)
    logits = rng.normal(size=(8, 32, len(task.label_names))).astype(np.float32)
    shares = tf.nn.softmax(logits)

    def spans():
        return tagged_spans(tf.constant(texts), windows, shares, task.roles, tokenizer)

    found = spans()
    for name, value in tf.function(spans)().items():
        np.testing.assert_array_equal(value, found[name])
    for row, text in enumerate(texts):
        tags = [task.label_names[i] for i in logits[row, 1:31].argmax(axis=-1)]
        words = text.split()
        expected = [
            (type, " ".join(words[begin:end])) for type, begin, end in task.scheme.spans(tags)
        ]
        count = found["count"][row]
        columns = (found[name][row, :count].numpy() for name in ("label", "text"))
        pairs = zip(*columns, strict=True)
        assert [(a.decode(), b.decode()) for a, b in pairs] == expected


@pytest.mark.parametrize("scheme", NAMES)
def test_words_are_tagged_in_the_scheme_of_the_model(tokenizer, scheme):
    """What is trained, predicted and scored agrees; split words have the tags of an entity."""
    task = Tagging(tokenizer, NAMES[scheme], 32)
    words = ("cat.dog", "sat", "the")
    types = dict.fromkeys(type for _, type in task.roles if type)
    entity = task.scheme.write([(next(iter(types)), 0, 2)], 3)
    example = TagExample("", words, entity)
    encoded = task.encode([example])
    (item,) = encoded.items
    weighted = item.label_weights > 0
    tags = [task.label_names[i] for i in item.labels[weighted]]
    assert task.scheme.strict_spans(tags) == [(next(iter(types)), 0, 4)]
    logits = np.eye(len(task.label_names), dtype=np.float32)[item.labels]
    (found,) = task.predictions([example], encoded, [{"logits": logits}])
    assert found["tags"] == list(entity)
    scores = task.scores([example], [{"tags": list(entity)}])
    assert scores["entity_f1"] == scores["entity_f1_strict"] == 1
    assert "micro avg" in task.report([example], [found])


def model_of(names):
    keras.utils.set_random_seed(0)
    config = kbert.BertConfig(
        **{"vocab_size": 18, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
        **{"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5},
        **{"num_labels": len(names), "label_names": names},
    )
    return kbert.BertForTokenClassification(config)


@pytest.mark.slow
def test_entities_of_an_export(tokenizer, tmp_path):
    """Writing it compares it with the Predictor; here its answers are compared once more."""
    model = model_of(NAMES["BMES"])
    model.save_pretrained(tmp_path / "hf", format="hf")
    tokenizer.save_pretrained(tmp_path / "hf", format="hf")
    saved_model.save_endpoint(saved_model.load_endpoint(tmp_path / "hf", "tag"), tmp_path / "1")
    texts = ["the cat sat on a mat", "dog ran", ""]
    outputs = tf.saved_model.load(tmp_path / "1").signatures["serving_default"](
        text=tf.constant(texts)
    )
    predictor = kbert.Predictor.from_pretrained(tmp_path / "hf")
    for row, spans in enumerate(predictor.tag(texts)):
        count = outputs["count"][row]
        assert [value.decode() for value in outputs["label"][row, :count].numpy()] == [
            span["label"] for span in spans
        ]
        assert {span["label"] for span in spans} <= set(TYPES)
    assert sum(map(len, predictor.tag(texts))) > 3


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["IOB2", "plain"])
def test_entities_equal_those_of_hf(tokenizer, tmp_path, scheme):
    """200 sentences; "simple" joins pieces, so its words are whole, and "first" is kbert's rule."""
    import transformers

    model = model_of(NAMES[scheme])
    model.save_pretrained(tmp_path, format="hf")
    tokenizer.save_pretrained(tmp_path, format="hf")
    predictor, rng = kbert.Predictor(model, tokenizer), np.random.default_rng(0)
    for strategy, words in (("simple", WORDS[:8]), ("first", [*WORDS[:8], "unwanted"])):
        texts = [" ".join(rng.choice(words, rng.integers(1, 10))) for _ in range(200)]
        theirs = transformers.pipeline(
            "token-classification", str(tmp_path), aggregation_strategy=strategy
        )(texts)
        total = 0
        for spans, expected in zip(predictor.tag(texts), theirs, strict=True):
            assert [(s["label"], s["start"], s["end"]) for s in spans] == [
                (e["entity_group"], e["start"], e["end"]) for e in expected
            ]
            np.testing.assert_allclose(
                [s["score"] for s in spans], [e["score"] for e in expected], atol=1e-5
            )
            total += len(spans)
        assert total > 200
