"""The limits of exported graphs: each by its name, its value and its flag, in any loader."""

import numpy as np
import pytest
import tensorflow as tf

from kbert.errors import UserError
from kbert.serving import saved_model
from kbert.serving.signatures import signatures
from kbert.settings import ExportConfig, TextLimits

# With windows of 16 tokens, 14 of a text, every 7.
LIMITS = TextLimits(max_text_tokens=40, max_windows=6, max_choices=3)


@pytest.fixture(scope="module")
def tagger(folders, tmp_path_factory):
    """Folder of an export with `LIMITS`, and the functions that were written."""
    endpoint = saved_model.load_endpoint(folders["entities"])
    endpoint.limits = LIMITS
    folder = tmp_path_factory.mktemp("tagger") / "1"
    return folder, saved_model.save_endpoint(endpoint, folder)


def session(folder, name="serving_default"):
    """A signature as TensorFlow Serving calls it: a function of texts to the counts of spans."""
    graph = tf.Graph()
    with graph.as_default():
        running = tf.compat.v1.Session(graph=graph)
        meta = tf.compat.v1.saved_model.loader.load(running, ["serve"], str(folder))
    definition = meta.signature_def[name]
    fetched = next(iter(definition.outputs.values())).name
    return lambda texts: running.run(fetched, {definition.inputs["text"].name: texts})


@pytest.mark.parametrize("loader", ["traced", "eager", "session"])
def test_texts_over_a_limit(tagger, loader):
    folder, functions = tagger
    names = ["serving_default", "internal_encode"]
    if loader == "session":
        answers = [session(folder, name) for name in names]
    else:
        found = tf.saved_model.load(str(folder)).signatures if loader == "eager" else functions
        answers = [lambda texts, name=name: found[name](text=tf.constant(texts)) for name in names]
    for answer in answers:
        answer(["cat " * 40, " " * 640])
        for texts, message in (
            (
                ["the", "cat " * 41],
                r"more tokens than --max_text_tokens=40 of kbert.export.*\[41\]",
            ),
            ([" " * 641], r"longer, at 16 bytes per token, than --max_text_tokens=40.*\[41\]"),
            (["cat " * 28, "cat " * 35], r"windows than --max_windows=6 of kbert.export.*\[7\]"),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                answer(texts)


def test_a_text_over_the_limit_is_not_tokenized(folders, monkeypatch):
    endpoint = saved_model.load_endpoint(folders["classify"])
    endpoint.limits = LIMITS
    tokenized = []
    tokenize = endpoint.tokenizer.tokenize
    monkeypatch.setattr(
        endpoint.tokenizer, "tokenize", lambda texts: tokenized.append(texts) or tokenize(texts)
    )
    assert endpoint.from_texts(text=["the cat"] * 9 + ["a"])["label"].shape == (10,)
    assert [texts.numpy().tolist() for texts in tokenized] == [[b"the cat", b"a"]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="text is longer, at 16 bytes"):
        endpoint.from_texts(text=["a" * 641])
    assert len(tokenized) == 1


def test_choices_over_the_limit(folders, monkeypatch):
    endpoint = saved_model.load_endpoint(folders["choose"])
    endpoint.limits = LIMITS
    tokenized = []
    tokenize = endpoint.tokenizer.tokenize
    monkeypatch.setattr(
        endpoint.tokenizer, "tokenize", lambda texts: tokenized.append(texts) or tokenize(texts)
    )
    texts = tf.constant(["the cat sat"] * 2)
    found = endpoint.from_texts(text=texts, choices=tf.constant([["a", "mat", "dog"]] * 2))
    assert found["probabilities"].shape == (2, 3)
    assert [len(texts) for texts in tokenized] == [1, 3]  # each text once, not for each choice
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"more choices than --max_choices=3 of kbert.export"
    ):
        endpoint.from_texts(text=texts, choices=tf.constant([["a"] * 4] * 2))
    assert len(tokenized) == 2


def test_rows_of_choices_are_computed_in_small_batches(folders):
    endpoint = saved_model.load_endpoint(folders["choose"])
    sizes = []
    endpoint.compute = lambda rows: sizes.append(len(rows["input_ids"])) or endpoint.forward(rows)
    ids = tf.ones([3, 25, 8], tf.int32)
    features = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)
    assert endpoint.from_ids(features)["logits"].shape == (3, 25) and max(sizes) == 32


def test_limits_travel_with_an_export(tagger):
    assert saved_model.load_exported(tagger[0]).limits == LIMITS


def test_limits_are_those_of_the_flags():
    config = ExportConfig(model="a", output_dir="b", max_windows=7)
    assert (config.max_text_tokens, config.max_windows, config.max_choices) == (65536, 7, 128)
    with pytest.raises(UserError, match="max_choices must be >= 1; got 0"):
        ExportConfig(model="a", output_dir="b", max_choices=0)
    with pytest.raises(UserError, match="--max_windows requires --format=serving; got openvino"):
        ExportConfig(model="a", output_dir="b", format="openvino", max_windows=7)


@pytest.mark.slow
def test_fifty_pages_are_within_the_limits(folders):
    """About 40,000 tokens, in the windows of 128 tokens of a model of that length."""
    endpoint = saved_model.load_endpoint(folders["entities"])
    endpoint.max_seq_length = 128
    text = "The cat sat on a mat, and the dog ran. " * 3334
    features, _ = endpoint.encode_limited(text=[text])
    assert len(features["input_ids"]) == int(np.ceil((3334 * 12 - 126) / 63)) + 1


@pytest.mark.slow
def test_limits_of_batched_graphs(folders, tmp_path):
    endpoint = saved_model.load_endpoint(folders["entities"])
    endpoint.limits = LIMITS
    functions = signatures(endpoint, batch_timeout_ms=5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="--max_text_tokens=40"):
        functions["serving_default"](text=tf.constant([" " * 641]))
    found = functions["serving_default"](text=tf.constant(["the cat"]))
    assert found["count"].shape == (1,)
