"""The hub pair: TF Hub's text API, a layer that learns on in Keras 3 and in tf_keras."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import kbert
from kbert.errors import UserError
from kbert.serving.export import export_tf_hub
from kbert.serving.tf_hub import NAMES, save_encoder
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "un", "##want", "##ed", "."]
TEXTS = ["the cat sat.", "a dog ran on the unwanted mat"] * 8
LABELS = np.array([0, 1] * 8)
BERT = {
    **{"vocab_size": 17, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 20, "max_position_embeddings": 16, "initializer_range": 0.2},
}
SETTINGS = {"optimizer": "adam", "jit_compile": False}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folder of a BERT for pretraining."""
    folder = tmp_path_factory.mktemp("weights")
    write_vocab([*SPECIAL_TOKENS, *WORDS], folder / "vocab.txt")
    keras.utils.set_random_seed(0)
    kbert.BertForPreTraining(kbert.BertConfig(**BERT)).save_pretrained(folder)
    kbert.BertTokenizer(folder / "vocab.txt").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(weights, tmp_path_factory):
    """Folders of the preprocessor and the encoder."""
    target, lines = tmp_path_factory.mktemp("hub") / "bert", []
    export_tf_hub(weights, target, 12, lines.append)
    assert "encoder, 2 layers, width 12, 12 tokens" in lines[0]
    assert any("same outputs as kbert.BertModel" in line for line in lines)
    return target / "preprocess", target / "encoder"


def loaded(pair):
    return (tf.saved_model.load(str(path)) for path in pair)


def test_the_preprocessor_has_the_text_api(weights, pair):
    preprocess, _ = loaded(pair)
    tokenizer = kbert.BertTokenizer.from_pretrained(weights)
    features = tokenizer(TEXTS, max_length=12)
    found = preprocess(tf.constant(TEXTS))
    names = {"input_word_ids": "input_ids", "input_mask": "attention_mask"}
    for name, ours in {**names, "input_type_ids": "token_type_ids"}.items():
        np.testing.assert_array_equal(found[name], features[ours])
    pieces = preprocess.tokenize(tf.constant(TEXTS))
    assert pieces.to_list() == tokenizer.tokenize(TEXTS).to_list()
    packed = preprocess.bert_pack_inputs([pieces])
    np.testing.assert_array_equal(packed["input_mask"], features["attention_mask"])
    packed = preprocess.bert_pack_inputs([pieces, pieces], tf.constant(9))
    wanted = tokenizer(TEXTS, TEXTS, max_length=9)
    np.testing.assert_array_equal(packed["input_word_ids"], wanted["input_ids"])
    np.testing.assert_array_equal(packed["input_type_ids"], wanted["token_type_ids"])
    special = preprocess.tokenize.get_special_tokens_dict()
    assert {name: int(value) for name, value in special.items()} == {
        **{"vocab_size": 17, "padding_id": 0, "start_of_sequence_id": 2},
        **{"end_of_segment_id": 3, "mask_id": 4},
    }


def test_the_encoder_has_the_text_api_and_dropout(weights, pair):
    preprocess, encoder = loaded(pair)
    model = kbert.BertModel.from_pretrained(weights, output_hidden_states=True)
    inputs = preprocess(tf.constant(TEXTS))
    wanted = model(kbert.BertTokenizer.from_pretrained(weights)(TEXTS, max_length=12))
    found = encoder(inputs)
    assert found.keys() == {"pooled_output", "sequence_output", "encoder_outputs", "default"}
    np.testing.assert_allclose(found["pooled_output"], wanted["pooler_output"], atol=1e-5)
    np.testing.assert_allclose(found["default"], wanted["pooler_output"], atol=1e-5)
    np.testing.assert_allclose(found["sequence_output"], wanted["last_hidden_state"], atol=1e-5)
    for a, b in zip(found["encoder_outputs"], wanted["hidden_states"][1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    once, again = (encoder(inputs, training=True)["pooled_output"].numpy() for _ in range(2))
    assert np.abs(once - again).max() > 1e-3
    assert len(encoder.trainable_variables) == len(model.trainable_variables)


@pytest.mark.slow
def test_gradients_are_those_of_the_model(weights, tmp_path):
    """Through the fused pieces, which bring gradients of their own; without dropout."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = kbert.BertModel.from_pretrained(weights, output_hidden_states=True, **off)
    save_encoder(model, tmp_path / "encoder")
    encoder = tf.saved_model.load(str(tmp_path / "encoder"))
    features = kbert.BertTokenizer.from_pretrained(weights)(TEXTS, max_length=12)
    inputs = {NAMES[name]: value for name, value in features.items()}
    slope = np.random.default_rng(0).normal(size=(len(TEXTS), 12)).astype("float32")
    found, wanted = [], []
    for call, variables, gradients in (
        (
            lambda: encoder(inputs, training=True)["pooled_output"],
            encoder.trainable_variables,
            found,
        ),
        (
            lambda: model(features, training=True)["pooler_output"],
            [v.value for v in model.trainable_variables],
            wanted,
        ),
    ):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(call() * slope)
        gradients += map(tf.convert_to_tensor, tape.gradient(total, list(variables)))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(np.abs(gradient).max() for gradient in wanted) > 0.1


def classifier(pair, library=keras, make=None):
    """A model from text to two classes, and its encoder."""
    make_preprocess, make_encoder = make or (kbert.hub.PreprocessLayer, kbert.hub.BertLayer)
    text = library.Input((), dtype="string" if library is keras else tf.string)
    encoder = make_encoder(str(pair[1]), trainable=True)
    pooled = encoder(make_preprocess(str(pair[0]))(text))["pooled_output"]
    return library.Model(text, library.layers.Dense(2)(pooled)), encoder


def learn(model, encoder, library=keras):
    """Fits; losses of the epochs, and how many of the encoder's weights did not move."""
    before = [np.array(weight) for weight in encoder.trainable_weights]
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(library.optimizers.Adam(3e-3), loss)
    losses = model.fit(tf.constant(TEXTS), LABELS, 4, epochs=8, verbose=0).history["loss"]
    moved = [
        np.abs(a - np.array(b)).max() > 0
        for a, b in zip(before, encoder.trainable_weights, strict=True)
    ]
    return losses, moved


@pytest.mark.slow
def test_the_layer_learns_in_keras_3(pair, tmp_path):
    keras.utils.set_random_seed(0)
    model, encoder = classifier(pair)
    losses, moved = learn(model, encoder)
    assert losses[-1] < 0.5 * losses[0] and len(moved) > 30 and all(moved)
    inputs = kbert.hub.PreprocessLayer(str(pair[0]))(tf.constant(TEXTS))
    once, again = (np.array(encoder(inputs, training=True)["default"]) for _ in range(2))
    assert np.abs(once - again).max() > 1e-3
    np.testing.assert_array_equal(encoder(inputs)["default"], encoder(inputs)["default"])

    wanted = np.array(model(tf.constant(TEXTS)))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(reloaded(tf.constant(TEXTS)), wanted)

    script = (
        "import sys, keras, numpy as np, tensorflow as tf, kbert.hub; "
        "model = keras.models.load_model(sys.argv[1]); "
        "np.save(sys.argv[2], model(tf.constant(sys.argv[3:])))"
    )
    paths = [str(tmp_path / "model.keras"), str(tmp_path / "found.npy")]
    subprocess.run([sys.executable, "-c", script, *paths, *TEXTS], check=True)
    np.testing.assert_array_equal(np.load(paths[1]), wanted)

    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(tf.constant(TEXTS)), wanted, atol=1e-6)


def test_a_frozen_layer_stays(pair):
    model, _ = classifier(pair, make=(kbert.hub.PreprocessLayer, frozen))
    assert len(model.trainable_weights) == 2


def frozen(handle, trainable):
    return kbert.hub.BertLayer(handle, trainable=False)


@pytest.mark.slow
def test_the_pair_learns_in_tf_keras(pair):
    hub = pytest.importorskip("tensorflow_hub")
    tf_keras = pytest.importorskip("tf_keras")
    keras.utils.set_random_seed(0)
    model, encoder = classifier(pair, tf_keras, (hub.KerasLayer, hub.KerasLayer))
    losses, moved = learn(model, encoder, tf_keras)
    assert losses[-1] < 0.5 * losses[0] and len(moved) > 30 and all(moved)


def test_a_folder_that_is_no_saved_model(weights):
    with pytest.raises(UserError, match=r"is not a SavedModel\. Create one"):
        kbert.hub.BertLayer(weights)


def test_a_length_that_the_model_does_not_have(weights, tmp_path):
    with pytest.raises(UserError, match=r"max_seq_length must be 5 to 16.*got 17"):
        export_tf_hub(weights, tmp_path / "hub", 17)
