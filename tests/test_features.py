"""Inputs of the models: names, shapes, dtypes and ranges, and what their errors say."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from kbert import BertConfig, UserError
from kbert.features import check_names
from kbert.model import BertForMultipleChoice, BertForSequenceClassification, BertModel

B, L, V, D = 3, 7, 23, 12
CONFIG = BertConfig(
    vocab_size=V,
    hidden_size=D,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=20,
    max_position_embeddings=9,
    num_labels=4,
)
IDS = np.random.default_rng(0).integers(0, V, (B, L))


@pytest.fixture(scope="module")
def bert():
    keras.utils.set_random_seed(0)
    return BertModel(CONFIG)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("input_mask", "attention_mask"),
        ("attention_masks", "attention_mask"),
        ("padding_mask", "attention_mask"),
        ("segment_ids", "token_type_ids"),
        ("token_type_id", "token_type_ids"),
        ("input_type_ids", "token_type_ids"),
        ("position_id", "position_ids"),
        ("mask_positions", "masked_positions"),
    ],
)
def test_a_misnamed_feature_is_named_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f"unknown feature '{name}'. Did you mean '{nearest}'?"):
        check_names(["input_ids", name])


def test_a_name_like_no_other():
    expected = (
        r"unknown feature 'uid'. The inputs of a model are input_ids, attention_mask, "
        r"token_type_ids, position_ids, sequence_ids, inputs_embeds and masked_positions. To make "
        r"the model ignore 'uid', create it with extra_features=\('uid',\)."
    )
    with pytest.raises(UserError, match=expected):
        check_names(["input_ids", "uid"])
    check_names(["input_ids", "uid"], ["uid"])


def test_labels_are_no_inputs_but_may_be_there():
    names = ["labels", "label", "label_weights", "next_sentence_labels", "start_positions"]
    check_names(["input_ids", "token_type_ids", "masked_weights", *names])


@pytest.mark.parametrize("names", [["attention_mask"], ["input_ids", "inputs_embeds"]])
def test_the_tokens_are_given_once(names):
    with pytest.raises(UserError, match="must have either input_ids or inputs_embeds; got "):
        check_names(names)


def test_errors_of_a_call(bert):
    """Keras and AutoGraph add nothing, except in the functional API."""
    expected = (
        "^unknown feature 'segment_ids'. Did you mean 'token_type_ids'[?].*segment_ids',[)].$"
    )
    inputs = {"input_ids": IDS, "segment_ids": 0 * IDS}
    classifier = BertForSequenceClassification(CONFIG)
    symbolic = {name: keras.Input((None,), dtype="int32") for name in inputs}
    for call in (
        lambda: bert(inputs),
        lambda: classifier(inputs),
        lambda: classifier.predict(inputs, verbose=0),
        lambda: tf.function(bert)(inputs),
    ):
        with pytest.raises(UserError, match=expected):
            call()
    with pytest.raises(UserError, match=expected[1:]):
        bert(symbolic)


@pytest.mark.parametrize("extra_features", ["uid", ["uid", "length"]])
def test_extra_features_are_ignored(extra_features):
    """Labels need no permission."""
    model = BertForSequenceClassification(CONFIG, extra_features=extra_features)
    inputs = {"input_ids": IDS, "uid": np.arange(B), "labels": np.arange(B)}
    np.testing.assert_array_equal(model(inputs)["logits"], model(IDS)["logits"])


@pytest.mark.slow
def test_extra_features_in_fit():
    model = BertForSequenceClassification(CONFIG, extra_features=["uid"])
    inputs = {"input_ids": IDS, "uid": np.arange(B), "labels": np.arange(B)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss={"logits": loss})
    dataset = tf.data.Dataset.from_tensors((inputs, {"logits": inputs["labels"]}))
    model.fit(dataset, verbose=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": IDS[0]}, r"input_ids must have the shape \(B, L\); got \(7,\)\."),
        ({"attention_mask": IDS[:, :5]}, r"attention_mask .* \(3, 5\), but .* have \(3, 7"),
        ({"token_type_ids": IDS[:1]}, r"token_type_ids .* \(1, 7\), but .* have \(3, 7\)"),
        ({"input_ids": IDS + V - 1}, "input_ids must be 0 to 22, .* vocab_size is 23; got "),
        ({"input_ids": IDS * 0 - 1}, "input_ids must be 0 to 22, because the .*; got -1"),
        ({"token_type_ids": IDS * 0 + 2}, "token_type_ids must be 0 to 1, .* type_vocab_size is"),
        ({"position_ids": IDS * 0 + 9}, "position_ids must be 0 to 8, .* max_position_embeddings"),
    ],
)
def test_inputs_that_do_not_fit(bert, changes, message):
    with pytest.raises(UserError, match=message):
        bert({"input_ids": IDS, **changes})


def test_ids_of_floats(bert):
    """Keras' default for inputs. It casts floats to half precision, which lacks most ids."""
    ids = IDS.astype("float32")
    np.testing.assert_array_equal(bert(ids)["pooler_output"], bert(IDS)["pooler_output"])
    config = dataclasses.replace(CONFIG, vocab_size=999)
    half = BertModel(config, dtype="mixed_bfloat16")
    outputs = [half(x + 900)["last_hidden_state"].numpy() for x in (ids, IDS)]
    np.testing.assert_array_equal(*outputs)
    inputs = keras.Input([7])
    model = keras.Model(inputs, half({"input_ids": inputs})["last_hidden_state"])
    np.testing.assert_allclose(model(ids + 900), outputs[1], atol=0.05)  # another kernel


def test_inputs_of_another_kind(bert):
    ids = tf.constant(IDS)
    with pytest.raises(UserError, match=r"input_ids must be a tensor .*; got a list\. The"):
        bert([ids, ids])
    with pytest.raises(UserError, match=r"input_ids must have the shape \(B, C, L\); got \(3, 7\)"):
        BertForMultipleChoice(CONFIG)(IDS)


def test_sequences_longer_than_the_positions(bert):
    ids = np.zeros((2, 10), "int32")
    expected = (
        "^the sequences have 10 tokens, but the model's max_position_embeddings is 9. "
        r"Truncate them, for example with tokenizer\(texts, max_length=9\).$"
    )
    for call in (bert, tf.function(bert), lambda x: bert.predict(x, verbose=0)):
        with pytest.raises(UserError, match=expected):
            call(ids)
    with pytest.raises(UserError, match=expected[1:]):
        bert(keras.Input((10,), dtype="int32"))


def test_position_ids(bert):
    """Two sequences in a row, of which the mask hides one: as each alone."""
    ids = np.concatenate([IDS, IDS[::-1, :5]], axis=1)  # longer than the position table
    positions = np.tile([*range(L), *range(5)], (B, 1))
    for first, last in ((0, L), (L, L + 5)):
        mask = np.zeros_like(ids)
        mask[:, first:last] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        found = bert(inputs)["last_hidden_state"][:, first:last]
        expected = bert(ids[:, first:last])["last_hidden_state"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("cls", [BertModel, BertForMultipleChoice])
def test_inputs_embeds(cls):
    model = cls(CONFIG)
    bert = getattr(model, "bert", model)
    ids = IDS if cls is BertModel else np.stack([IDS, IDS[::-1]], axis=1)
    table = bert.embeddings.word_embeddings.embeddings.numpy()
    found, expected = model({"inputs_embeds": table[ids]}), model(ids)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
