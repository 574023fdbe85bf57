"""Engines: the numbers of the model, whoever computes them; what OpenVINO's cache holds."""

import concurrent.futures
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow

import kbert
from kbert.data.bucketed_batches import EncodedExample
from kbert.errors import UserError
from kbert.inference import backends, batch_runner, model_runner
from kbert.inference.batch_runner import BatchRunner
from kbert.model.inference_ops import constant_weights
from kbert.settings import PredictConfig
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train.distribution import fast_precision

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "un", "##want", "##ed", ".", ","]
TEXTS = ["the cat sat.", "a dog", "the unwanted dog ran on the mat, the cat sat on a dog."] * 2
MASKED = ["the [MASK] sat.", "[MASK] dog ran on the unwanted [MASK], a cat."] * 2
BERT = {
    **{"vocab_size": 18, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.3},
}
LABELS = {"num_labels": 3, "label_names": ("B-X", "I-X", "O")}
CASES = {  # method: class of the model, fields of its config, what is asked
    "classify": ("BertForSequenceClassification", LABELS, [TEXTS, TEXTS[::-1]]),
    "tag_words": ("BertForTokenClassification", LABELS, [[text.split() for text in TEXTS]]),
    "answer": ("BertForQuestionAnswering", {}, [TEXTS, [text * 2 for text in TEXTS[::-1]]]),
    "choose": ("BertForMultipleChoice", {}, [TEXTS, [["a mat", "dog ran on"]] * 6]),
    "next_sentence": ("BertForNextSentencePrediction", {}, [TEXTS, TEXTS[::-1]]),
    "embed": ("BertModel", {}, [TEXTS]),
    "fill_mask": ("BertForMaskedLM", {}, [MASKED]),
}
# The order of sums differs: 1e-6 of values near 1, and a few times that through the layers.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    write_vocab([*SPECIAL_TOKENS, *WORDS], path)
    return kbert.BertTokenizer(path)


@pytest.fixture(params=["tensorflow", "openvino"])
def backend(request):
    return request.param


def model_of(name, dtype=None, seed=0, **config):
    """A model in which no vector has its first values, 0 or 1."""
    keras.utils.set_random_seed(seed)
    model = getattr(kbert, name)(kbert.BertConfig(**{**BERT, **config}), dtype=dtype)
    for i, weight in enumerate(model.weights):
        if len(weight.shape) == 1:
            weight.assign_add(keras.random.normal(weight.shape, stddev=0.1, seed=i))
    return model


def leaves(value):
    """The numbers and strings in what a Predictor returns, in order."""
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def assert_same(found, expected, tolerance=TOLERANCE):
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        assert one == (other if isinstance(other, str) else pytest.approx(other, abs=tolerance))


@pytest.fixture
def asked(tokenizer, monkeypatch):
    """Function: what a Predictor with a backend, or the model itself ("keras"), says."""

    def ask(method, model, backend):
        _, _, arguments = CASES[method]
        if backend == "keras":
            monkeypatch.setattr(model_runner, "frozen_backend", lambda *_: backends.keras_backend)
            backend = "tensorflow"
        said = kbert.Predictor(model, tokenizer, batch_size=2, backend=backend)
        found = getattr(said, method)(*arguments)
        monkeypatch.undo()
        return found

    return ask


@pytest.mark.parametrize("method", CASES)
def test_each_backend_says_what_the_model_says(asked, backend, method):
    name, config, _ = CASES[method]
    model = model_of(name, **config)
    assert_same(asked(method, model, backend), asked(method, model, "keras"))


@pytest.mark.parametrize("method", slow("embed", "fill_mask"))
def test_on_a_gpu_xla_compiles(asked, method, monkeypatch):
    """Not on a GPU here: what is compiled, and the shapes of the batches, are those of one."""
    name, config, _ = CASES[method]
    model = model_of(name, **config)
    expected = asked(method, model, "keras")
    for module in (backends, batch_runner):
        monkeypatch.setattr(module, "on_gpu", lambda: True)
    assert backends.choose_backend("auto") == "tensorflow"
    said = kbert.Predictor(model, kbert.BertTokenizer([*SPECIAL_TOKENS, *WORDS]), batch_size=4)
    assert_same(getattr(said, method)(*CASES[method][2]), expected)


def test_small_embeddings_are_normalised_as_in_the_model(asked, backend):
    """With variances as those of BERT's first weights, any other epsilon of LayerNorm shows."""
    model = model_of("BertModel", initializer_range=0.02)
    assert_same(asked("embed", model, backend), asked("embed", model, "keras"))


@pytest.mark.parametrize("method", slow("classify", "embed"))
def test_bfloat16(asked, backend, method):
    """A value has 8 bits, so results are off by some 1/256; the model itself stays as it was."""
    name, config, _ = CASES[method]
    exact = asked(method, model_of(name, **config), "keras")
    model = model_of(name, "mixed_bfloat16", **config)
    found = asked(method, model, backend)
    numbers = [
        [leaf for leaf in leaves(said) if not isinstance(leaf, str)]
        for said in (found, exact, asked(method, model, "keras"))
    ]
    np.testing.assert_allclose(numbers[0], numbers[1], atol=0.05)
    np.testing.assert_allclose(numbers[0], numbers[2], atol=0.05)
    assert {layer.compute_dtype for layer in model.layers} == {"bfloat16"}


def test_adapters(asked, backend):
    model = model_of("BertForSequenceClassification", "mixed_bfloat16", **LABELS)
    model.add_lora(2)
    for a, b, _ in model.adapters().values():
        a.assign(keras.random.normal(a.shape, stddev=0.1, seed=1))
        b.assign(keras.random.normal(b.shape, seed=2))
    found, expected = (asked("classify", model, e) for e in (backend, "keras"))
    for row, other in zip(found, expected, strict=True):
        assert row["scores"] == pytest.approx(other["scores"], abs=0.05)


def item(length):
    return EncodedExample(np.full(length, 5, np.int32), np.zeros(length, np.int32))


def test_weights_in_training_are_those_of_the_call(backend):
    model = model_of("BertModel")
    settled = backends.frozen_backend(backend, model, "first")
    for compiler, changes in ((backends.keras_backend, True), (settled, False)):
        pooled = lambda features: {"x": model(features)["pooler_output"]}  # noqa: E731
        forward = BatchRunner(pooled, 0, 32, backend=compiler)
        (before,) = forward([item(7)])
        model.pooler.pooler_dense.bias.assign_add(np.full(24, 0.3, np.float32))
        (after,) = forward([item(7)])
        assert np.allclose(before["x"], after["x"]) != changes


def test_threads_may_share_a_predictor(tokenizer, backend):
    """From its first prediction on."""
    model = model_of("BertModel")
    expected = kbert.Predictor(model, tokenizer, batch_size=1, backend=backend).embed(TEXTS)
    said = kbert.Predictor(model, tokenizer, batch_size=1, backend=backend)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: said.embed(TEXTS), range(8)):
            np.testing.assert_array_equal(found, expected)


def test_converting_in_threads_leaves_the_policy_of_a_model(tokenizer):
    model = kbert.BertModel(model_of("BertModel").config, dtype="mixed_bfloat16")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in pool.map(
            lambda _: kbert.Predictor(model, tokenizer, backend="openvino").embed(TEXTS), range(4)
        ):
            pass
    assert {layer.dtype_policy.name for layer in model._flatten_layers()} == {"mixed_bfloat16"}


def test_batches(monkeypatch):
    """As long as their longest item; few items where they are long; two at least."""
    forward = BatchRunner(None, pad_id=0, max_seq_length=500, batch_size=40)
    items = [item(length) for length in [5] * 45 + [7, 400, 300, 400, 5, 20]]

    def shapes():
        batches = forward._batches(items)
        assert sorted(np.concatenate(batches)) == list(range(len(items)))
        return [forward._features(items, batch)["input_ids"].shape for batch in batches]

    assert shapes() == [(2, 400), (3, 300), (26, 5), (20, 5)]
    items = [item(3)]
    assert shapes() == [(1, 3)]
    monkeypatch.setattr(batch_runner, "on_gpu", lambda: True)
    assert shapes() == [(1, 16)]
    items = [item(length) for length in [400, 30] + [5] * 50]
    assert shapes() == [(40, 500), (40, 16)]
    assert forward([]) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_graph_of_tensorflow_is_constant_and_fused(dtype):
    model = model_of("BertModel", dtype=f"mixed_{dtype}".replace("mixed_float32", "float32"))
    features = {n: np.ones((3, 5), np.int32) for n in ("input_ids", "attention_mask")}
    with constant_weights():
        inputs, outputs = backends.frozen_graph(
            lambda features: {"x": model(features)["last_hidden_state"]}, features, model, dtype
        )
    graph = inputs["input_ids"].graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert not [kind for kind in kinds if "Var" in kind]
    log = tf.compat.v1.RunMetadata()
    options = tf.compat.v1.RunOptions(output_partition_graphs=True)
    feed = {inputs[name]: features[name] for name in inputs}
    found = backends._inference_session(graph).run(outputs, feed, options, log)["x"]
    expected = model(features)["last_hidden_state"]
    atol = 1e-5 if dtype == "float32" else 0.1  # a few roundings to 8 bits of values near 2
    np.testing.assert_allclose(*(np.float32(x) for x in (found, expected)), atol=atol)
    nodes = [node for part in log.partition_graphs for node in part.node]
    computed = {node.op for node in nodes}
    if (
        not any("Mkl" in kind for kind in computed)
        or dtype not in f"{fast_precision('CPU')} float32"
    ):
        pytest.skip("oneDNN does not compute this dtype on this CPU")
    # One op for dense and GELU, one for scores, scale and mask, and one for LayerNorm.
    assert {"_MklNativeFusedMatMul", "_MklFusedBatchMatMulV2", "_MklLayerNorm"} <= computed
    assert not [
        kind for kind in computed if re.search("Erf|(?<!Fused)MatMul$|BatchNorm|BiasAdd", kind)
    ]


def test_names_of_engines():
    with pytest.raises(
        UserError, match=r"backend must be one of auto, tensorflow, openvino, keras; got 'x"
    ):
        kbert.Predictor(None, None, backend="xla")
    with pytest.raises(UserError, match=r"backend must be one of auto, tensorflow, openvino"):
        PredictConfig(model="a", backend="xla")
    assert backends.choose_backend("auto") == "openvino"


def test_openvino_is_not_needed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    assert backends.choose_backend("auto") == "tensorflow"
    with pytest.raises(UserError, match=r"needs OpenVINO: pip install 'kbert\[openvino\]'"):
        backends.choose_backend("openvino")


@pytest.fixture
def folder(tokenizer, tmp_path):
    model_of("BertModel").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def embedded(folder, monkeypatch):
    """Function: embeddings by OpenVINO of the folder's model, and how often it was converted."""
    count, converted = [], backends.openvino_model
    monkeypatch.setattr(
        backends, "openvino_model", lambda *arguments: count.append(1) or converted(*arguments)
    )

    def embed(dtype=None, pooling="mean"):
        count.clear()
        said = kbert.Predictor.from_pretrained(folder, dtype, backend="openvino")
        return said.embed(TEXTS, pooling), len(count)

    return embed


def kept(folder):
    return sorted(path.name.split("-")[0] for path in (folder / "openvino").iterdir())


def test_models_are_converted_once(folder, embedded):
    first, count = embedded()
    assert count == 1 and kept(folder) == ["embed"]
    again, count = embedded()
    assert count == 0
    np.testing.assert_array_equal(again, first)
    rounded, count = embedded("mixed_bfloat16")
    assert count == 0 and 0 <= np.abs(rounded - first).max() < 0.05
    assert embedded(pooling="cls")[1] == 0 and kept(folder) == ["embed"]


@pytest.mark.parametrize(
    "name",
    [
        "model.bin",
        *slow("model.xml"),
        *slow("sha256"),
    ],
)
def test_damaged_models_are_converted_again(folder, embedded, name):
    first, _ = embedded()
    (path,) = (folder / "openvino").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-5] + b"12345")
    for _ in range(2):
        again, count = embedded()
        np.testing.assert_array_equal(again, first)
        assert count == (_ == 0)
    shutil.rmtree(path.parent)
    assert embedded()[1] == 1


def test_other_weights_are_converted_anew(folder, embedded):
    first, _ = embedded()
    model_of("BertModel", seed=1).save_pretrained(folder)
    second, count = embedded()
    assert count == 1 and kept(folder) == ["embed"]
    assert np.abs(second - first).max() > 0.1


def test_folders_that_cannot_be_written_to(folder, embedded):
    (folder / "openvino").write_text("a file where the folder would be")
    _, count = embedded()
    assert count == 1 and embedded()[1] == 1
    assert (folder / "openvino").read_text().startswith("a file")
