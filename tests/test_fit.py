"""Plain Keras on every class: compile and fit, half precision, two devices, `.keras` files."""

import pathlib
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow
from warm_python import PYTHON

import kbert

CLASSES = [
    getattr(kbert, name)
    for name in (
        *("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction"),
        *("BertForSequenceClassification", "BertForTokenClassification"),
        *("BertForQuestionAnswering", "BertForMultipleChoice"),
    )
]
B, C, L, V = 4, 3, 9, 23
CONFIG = kbert.BertConfig(
    vocab_size=V,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=11,
    num_labels=C,
)


def compiled(cls, policy):
    """A model with a plain Keras optimizer and a loss for each of its outputs."""
    keras.utils.set_random_seed(0)
    model = cls(CONFIG, dtype=policy)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(3e-3), loss={n: loss for n in batch_of(model)[1]})
    return model


def batch_of(model):
    """Features, and labels drawn by lot, one for each row of each of the outputs."""
    rng = np.random.default_rng(0)
    shape = (B, C, L) if isinstance(model, kbert.BertForMultipleChoice) else (B, L)
    features = {
        "input_ids": rng.integers(0, V, shape).astype("int32"),
        "attention_mask": (np.arange(L) < 7).astype("int32") * np.ones(shape, "int32"),
        "token_type_ids": rng.integers(0, 2, shape).astype("int32"),
    }
    shapes = {name: value.shape for name, value in model(features).items()}
    labels = {n: rng.integers(0, s[-1], s[:-1]).astype("int32") for n, s in shapes.items()}
    return features, labels


@pytest.mark.slow
@pytest.mark.parametrize("cls", [CLASSES[0], *slow(*CLASSES[1:])])
def test_fit_in_half_precision_and_keras_files(cls, tmp_path):
    model = compiled(cls, "mixed_bfloat16")
    features, labels = batch_of(model)
    dataset = tf.data.Dataset.from_tensors((features, labels)).repeat(10)
    losses = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    for name in labels:
        np.testing.assert_array_equal(loaded(features)[name], model(features)[name])
    assert loaded.dtype_policy.name == "mixed_bfloat16"
    loaded.fit(dataset.take(1), verbose=0)  # with the optimizer it was compiled with


@pytest.mark.slow
def test_fit_on_two_devices():
    """In a process of its own: TensorFlow has one set of devices."""
    script = pathlib.Path(__file__).parent / "fit_mirrored.py"
    done = subprocess.run([PYTHON, str(script)], capture_output=True, text=True, cwd=script.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{cls.__name__} True True 2" for cls in CLASSES]
