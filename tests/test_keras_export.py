"""`export` of the models, which is Keras' own: other runtimes compute what the model computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from exports import BERT
from marks import slow

import kbert
from kbert.features import ENCODER_FEATURES
from kbert.model.inference_ops import onnx_compatible_ops

SHAPES = [(1, 5), (3, 7), (6, 32), (2, 1)]


def model_of(name, **fields):
    """A model of that class with random biases, 0.5 times a normal distribution."""
    keras.utils.set_random_seed(0)
    model = getattr(kbert, name)(kbert.BertConfig(**BERT, num_labels=3, **fields))
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(weight + 0.5 * keras.random.normal(weight.shape, seed=1))
    return model


def features_of(model, *shape):
    rng = np.random.default_rng(0)
    if model.input_rank == 3:
        shape = (shape[0], 4, shape[1])
    mask = np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, shape[:-1])[..., None]
    features = {
        "input_ids": rng.integers(4, 26, shape) * mask,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, shape) * mask,
    }
    return {name: x.astype(np.int32) for name, x in features.items()}


def check(model, compute):
    for shape in SHAPES:
        features = features_of(model, *shape)
        found, wanted = compute(features), model(features)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            scale = np.maximum(1, np.abs(value))
            np.testing.assert_allclose(found[name] / scale, value / scale, atol=1e-5, rtol=0)


CLASSIFIER = "BertForSequenceClassification"
OTHERS = (
    *("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction"),
    *("BertForTokenClassification", "BertForQuestionAnswering", "BertForMultipleChoice"),
)


@pytest.mark.parametrize("name", slow(CLASSIFIER, *OTHERS))
def test_onnx(name, tmp_path):
    """Batches and lengths of any size; the exact GELU, which is the default."""
    for package in ("tf2onnx", "onnx"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = model_of(name), str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    assert {port.name for port in session.get_inputs()} == set(ENCODER_FEATURES)
    names = [port.name for port in session.get_outputs()]
    check(model, lambda features: dict(zip(names, session.run(None, features), strict=True)))


@pytest.mark.parametrize("fitted", [False, *slow(True)])
def test_saved_model(fitted, tmp_path):
    """Right after the constructor, or `fit`."""
    model = model_of(CLASSIFIER)
    if fitted:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss={"logits": loss})
        model.fit(features_of(model, 3, 7), {"logits": np.arange(3)}, verbose=0)
    model.export(tmp_path / "model", verbose=False)
    exported = tf.saved_model.load(tmp_path / "model")  # whose variables live as long as it
    check(model, exported.serve)


@pytest.mark.slow
@pytest.mark.parametrize("name", [CLASSIFIER, *OTHERS])
def test_litert(name, tmp_path):
    """Built-in ops only, although Keras allows TensorFlow's, too."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model, path = model_of(name), tmp_path / "model.tflite"
    model.export(path, format="litert", verbose=False)
    assert b"Flex" not in path.read_bytes()
    runner = interpreter.Interpreter(str(path)).get_signature_runner()
    check(model, lambda features: runner(**features))


@pytest.mark.slow
def test_a_signature_with_fewer_features(tmp_path):
    """Features are optional, and sizes may be fixed."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    model, path = model_of(CLASSIFIER, hidden_act="gelu_new"), str(tmp_path / "model.onnx")
    signature = [{"input_ids": keras.InputSpec("int32", (None, 8), name="input_ids")}]
    model.export(path, format="onnx", verbose=False, input_signature=signature)
    session = onnxruntime.InferenceSession(path)
    ids = features_of(model, 3, 8)["input_ids"]
    (logits,) = session.run(["logits"], {"input_ids": ids})
    np.testing.assert_allclose(logits, model(ids)["logits"], atol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
def test_plain_ops_compute_the_same(act):
    """And the model computes as ever after them."""
    model = model_of("BertModel", hidden_act=act)
    features = features_of(model, 2, 5)
    wanted = model(features)["last_hidden_state"].numpy()
    with onnx_compatible_ops():
        found = model(features)["last_hidden_state"].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(model(features)["last_hidden_state"], wanted)
