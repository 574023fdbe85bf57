"""The models against a plain numpy BERT, HF torch and other backends, and as Keras models."""

import os
import pathlib
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from hf_bert import hf_model
from marks import slow
from numpy_bert import bert

from kbert import BertConfig
from kbert.errors import UserError
from kbert.model import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    attention,
    encoder,
    task_heads,
)
from kbert.model.weights import huggingface
from kbert.train import AdamW
from kbert.train.losses import PretrainingObjective

B, L, M, V = 3, 11, 4, 53
# float32 against float64, and against another library's order of additions
TOLERANCE = 1e-5
PRETRAINING = [BertModel, BertForPreTraining, BertForMaskedLM, BertForNextSentencePrediction]
TASKS = [BertForSequenceClassification, BertForTokenClassification]
TASKS += [BertForQuestionAnswering, BertForMultipleChoice]


def config_of(**changes):
    values = {"vocab_size": V, "hidden_size": 15, "num_hidden_layers": 2, "num_attention_heads": 3}
    values |= {"intermediate_size": 37, "max_position_embeddings": 13}
    return BertConfig(**{**values, **changes})


def features_of(seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([[11], [6], [8]])
    places = np.arange(L)
    return {
        "input_ids": rng.integers(0, V, (B, L)).astype("int32"),
        "attention_mask": (places < lengths).astype("int32"),
        "token_type_ids": ((places >= 4) & (places < lengths)).astype("int32"),
        "masked_positions": np.array([[1, 3, 9, 10], [2, 5, 0, 0], [7, 0, 0, 0]], "int32"),
        "masked_ids": rng.integers(0, V, (B, M)).astype("int32"),
        "masked_weights": np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], "float32"),
        "next_sentence_labels": np.array([0, 1, 1], "int32"),
    }


def features_for(cls):
    """The features that a model takes: for multiple choice, of 2 choices."""
    features = features_of()
    if cls is BertForMultipleChoice:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: np.stack([features[name], features[name] * 0 + 1], axis=1) for name in names}
    return features


def randomize(model, seed=1):
    """Weights without zeros and ones, so that nothing that is left out goes unnoticed."""
    rng = np.random.default_rng(seed)
    for weight in model.named_weights().values():
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


def arrays(model):
    return {name: np.array(weight) for name, weight in model.named_weights().items()}


def assert_close(found, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(found), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_equals_numpy(hidden_act):
    config = config_of(hidden_act=hidden_act)
    model = randomize(BertForPreTraining(config, output_hidden_states=True, output_attentions=True))
    outputs, expected = model(features_of()), bert(arrays(model), config, features_of())
    assert len(outputs["hidden_states"]) == 3 and len(outputs["attentions"]) == 2
    for name in ("mlm_logits", "nsp_logits"):
        assert_close(outputs[name], expected[name])
    for name in ("hidden_states", "attentions"):
        for found, wanted in zip(outputs[name], expected[name], strict=True):
            assert_close(found, wanted)
    bare = BertModel(config)
    for name, weight in bare.named_weights().items():
        weight.assign(model.named_weights()[name])
    outputs = bare(features_of())
    assert_close(outputs["pooler_output"], expected["pooler_output"])
    assert_close(outputs["last_hidden_state"], expected["hidden_states"][-1])


def hf_inputs(features):
    return {
        name: torch.tensor(features[name]).long()
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_equals_hf(hidden_act):
    config = config_of(hidden_act=hidden_act)
    model = randomize(BertForPreTraining(config, output_hidden_states=True, output_attentions=True))
    features = features_of()
    with torch.no_grad():
        expected = hf_model(arrays(model), config)(
            **hf_inputs(features), output_hidden_states=True, output_attentions=True
        )
    outputs = model(features)
    for found, wanted in zip(outputs["hidden_states"], expected.hidden_states, strict=True):
        assert_close(found, wanted)
    for found, wanted in zip(outputs["attentions"], expected.attentions, strict=True):
        assert_close(found, wanted)
    assert_close(outputs["nsp_logits"], expected.seq_relationship_logits)
    gathered = expected.prediction_logits.numpy()
    gathered = np.take_along_axis(gathered, features["masked_positions"][..., None], axis=1)
    assert_close(outputs["mlm_logits"], gathered)


def test_loss_and_gradients_equal_hf():
    config = config_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, features = randomize(BertForPreTraining(config)), features_of()
    variables = model.named_weights()
    with tf.GradientTape() as tape:
        sums = PretrainingObjective(B).sums(model(features, training=True), features)
        loss = PretrainingObjective(B).loss(sums, sums["mlm_count"])
    gradients = tape.gradient(loss, [variable.value for variable in variables.values()])
    hf = hf_model(arrays(model), config)
    labels = np.full((B, L), -100)
    rows, columns = np.nonzero(features["masked_weights"])
    labels[rows, features["masked_positions"][rows, columns]] = features["masked_ids"][
        rows, columns
    ]
    expected = hf(
        **hf_inputs(features),
        labels=torch.tensor(labels),
        next_sentence_label=torch.tensor(features["next_sentence_labels"]).long(),
    ).loss
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    theirs = dict(hf.named_parameters())
    external = huggingface.external_weights(config)
    for name, gradient in zip(variables, gradients, strict=True):
        wanted = theirs[external[name].name].grad.numpy()
        found = external[name].from_kbert(tf.convert_to_tensor(gradient).numpy())
        np.testing.assert_allclose(
            found, wanted, atol=1e-5 * max(1, abs(wanted).max()), err_msg=name
        )


@pytest.mark.parametrize("backend", [*slow("jax"), "torch"])
def test_equals_itself_on_other_backends(tmp_path, backend):
    config = config_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, features = randomize(BertForPreTraining(config)), features_of()
    model.save_pretrained(tmp_path)
    np.savez(tmp_path / "features.npz", **features)
    script = pathlib.Path(__file__).parent / "backend_outputs.py"
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = model(features)
    with np.load(tmp_path / "outputs.npz") as outputs:
        for name in ("mlm_logits", "nsp_logits"):
            assert_close(outputs[name], expected[name].numpy())
            assert_close(outputs[f"remat_{name}"], expected[name].numpy())


def test_gathered_positions_are_those_of_all_positions():
    for model in (
        randomize(BertForPreTraining(config_of())),
        randomize(BertForMaskedLM(config_of())),
    ):
        features = features_of()
        key = "mlm_logits" if "nsp" in model.parts else "logits"
        some = model(features)[key].numpy()
        positions = features.pop("masked_positions")
        everything = model(features)[key].numpy()
        assert everything.shape == (B, L, V)
        assert_close(some, np.take_along_axis(everything, positions[..., None], axis=1), 1e-6)


def test_padding_changes_nothing():
    model = randomize(BertModel(config_of()))
    features = features_of()
    changed = {**features, "input_ids": features["input_ids"].copy()}
    padding = features["attention_mask"] == 0
    changed["input_ids"][padding] = (changed["input_ids"][padding] + 7) % V
    outputs, others = model(features), model(changed)
    real = ~padding
    np.testing.assert_array_equal(
        outputs["last_hidden_state"].numpy()[real], others["last_hidden_state"].numpy()[real]
    )
    short = {name: features[name][1:2, :6] for name in ("input_ids", "token_type_ids")}
    assert_close(model(short)["pooler_output"][0], outputs["pooler_output"][1], 1e-6)


def test_features_that_may_be_left_out():
    model, ids = randomize(BertModel(config_of())), features_of()["input_ids"]
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    expected = model(given)["last_hidden_state"].numpy()
    for inputs in (ids, {"input_ids": ids}, {**given, "labels": ids}):
        assert_close(model(inputs)["last_hidden_state"], expected, 1e-6)


def test_masked_lm_and_next_sentence_equal_pretraining():
    whole = randomize(BertForPreTraining(config_of()))
    outputs = whole(features_of())
    for cls, key in (
        (BertForMaskedLM, "mlm_logits"),
        (BertForNextSentencePrediction, "nsp_logits"),
    ):
        model = cls(config_of())
        for name, weight in model.named_weights().items():
            weight.assign(whole.named_weights()[name])
        assert_close(model(features_of())["logits"], outputs[key].numpy(), 1e-6)


def test_names_of_weights():
    model = BertForPreTraining(config_of(num_hidden_layers=1))
    dense, norm = ("kernel", "bias"), ("gamma", "beta")
    expected = {"mlm/output_bias"}
    for table in ("word", "position", "token_type"):
        expected.add(f"bert/embeddings/{table}_embeddings/embeddings")
    layer = "bert/encoder/layer_0"
    for name, kinds in {
        "bert/embeddings/layer_norm": norm,
        **{f"{layer}/attention/{n}": dense for n in ("query", "key", "value", "output")},
        f"{layer}/attention_norm": norm,
        f"{layer}/intermediate": dense,
        f"{layer}/output": dense,
        f"{layer}/output_norm": norm,
        "bert/pooler/dense": dense,
        "mlm/transform": dense,
        "mlm/layer_norm": norm,
        "nsp/classifier": dense,
    }.items():
        expected |= {f"{name}/{kind}" for kind in kinds}
    assert set(model.named_weights()) == expected
    named = BertForPreTraining(config_of(num_hidden_layers=1), name="other")
    assert set(named.named_weights()) == expected
    assert len(model.weights) == len(expected)


def test_fresh_weights_are_those_of_bert():
    model = BertForPreTraining(config_of(hidden_size=120, intermediate_size=200, vocab_size=900))
    seen = set()
    for name, weight in arrays(model).items():
        if name.endswith(("kernel", "embeddings")):
            # a normal cut at two standard deviations has 0.88 of its spread
            assert abs(weight).max() <= 0.0401 and weight.std() == pytest.approx(0.0176, rel=0.15)
            seen.add(weight.ravel()[:2].tobytes())
        else:
            assert (weight == (1 if name.endswith("gamma") else 0)).all(), name
    assert len(seen) == sum(name.endswith(("kernel", "embeddings")) for name in arrays(model))


def test_dropout_acts_in_training_only():
    model = randomize(BertForPreTraining(config_of(hidden_dropout_prob=0.5)))
    a, b = (model(features_of(), training=True)["nsp_logits"].numpy() for _ in range(2))
    c, d = (model(features_of())["nsp_logits"].numpy() for _ in range(2))
    assert (a != b).any() and (c == d).all()
    without = BertForPreTraining(config_of(hidden_dropout_prob=0, attention_probs_dropout_prob=0))
    outputs = [without(features_of(), training=t)["nsp_logits"].numpy() for t in (True, False)]
    np.testing.assert_allclose(*outputs, atol=1e-6)  # XLA rounds otherwise


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(policy):
    """Half of the bits, so 1e-1; a row of padding alone gives numbers, not NaN."""
    features = features_of()
    features["attention_mask"][2] = 0
    exact = randomize(BertForPreTraining(config_of()))
    model = BertForPreTraining(config_of(), dtype=policy)
    for name, weight in model.named_weights().items():
        assert weight.dtype == "float32"
        weight.assign(exact.named_weights()[name])
    outputs, expected = model(features), exact(features)
    for name in ("mlm_logits", "nsp_logits"):
        assert outputs[name].dtype == tf.float32
        assert np.isfinite(outputs[name]).all()
        assert_close(outputs[name][:2], expected[name][:2].numpy(), 0.1)
    assert model.bert(features)["last_hidden_state"].dtype == policy.removeprefix("mixed_")


@pytest.mark.parametrize("cls", [*PRETRAINING, *TASKS])
def test_models_round_trip_as_keras_models(cls, tmp_path):
    model = randomize(cls(config_of(), output_hidden_states=True, output_attentions=True))
    again = cls.from_config(model.get_config())
    assert again.config == model.config and again.output_attentions and again.output_hidden_states
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is cls
    features = features_for(cls)
    outputs, others = model(features), loaded(features)
    assert outputs.keys() == others.keys()
    for name, value in outputs.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(others[name]), err_msg=name)
    model.summary(print_fn=lambda line: None)


@pytest.mark.parametrize(
    "cls",
    [
        *(attention.SelfAttention, encoder.Embeddings, encoder.EncoderBlock, encoder.Encoder),
        *(encoder.Pooler, task_heads.MaskedLMHead, task_heads.NextSentenceHead),
        *(task_heads.ClassificationHead, task_heads.ChoiceHead, task_heads.SpanHead),
        task_heads.EmbeddingHead,
    ],
)
def test_layers_round_trip(cls):
    layer = cls(config_of(), name="x", dtype="mixed_bfloat16")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is cls and again.config == layer.config
    assert (again.name, again.dtype_policy.name) == ("x", "mixed_bfloat16")


def test_compile_fit_evaluate_predict():
    keras.utils.set_random_seed(0)
    model, features = BertForPreTraining(config_of()), features_of()
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model.compile(AdamW(3e-3), loss={"mlm_logits": loss, "nsp_logits": loss}, jit_compile=False)
    targets = {"mlm_logits": features["masked_ids"], "nsp_logits": features["next_sentence_labels"]}
    weights = {"mlm_logits": features["masked_weights"], "nsp_logits": np.ones(B, "float32")}
    dataset = tf.data.Dataset.from_tensors((features, targets, weights)).repeat(60)
    before = model.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"]
    sums = PretrainingObjective(B).sums(model(features), features)
    assert before == pytest.approx(
        float(PretrainingObjective(B).loss(sums, sums["mlm_count"])), rel=1e-5
    )
    history = model.fit(dataset, epochs=1, verbose=0).history
    after = model.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"]
    assert after < history["loss"][0] < before and after < 0.7 * before
    assert model.predict(dataset.take(1), verbose=0)["mlm_logits"].shape == (B, M, V)


@pytest.mark.slow
@pytest.mark.parametrize("cls", TASKS)
def test_tasks_learn_with_fit(cls):
    """Plain Keras, on one batch with labels drawn by lot."""
    keras.utils.set_random_seed(0)
    config = config_of(num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, features = cls(config), features_for(cls)
    rng = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in model(features).items()}
    labels = {name: rng.integers(0, shape[-1], shape[:-1]) for name, shape in shapes.items()}
    assert {name: len(shape) for name, shape in shapes.items()} == {
        name: 3 if cls is BertForTokenClassification else 2 for name in shapes
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss={name: loss for name in shapes})
    dataset = tf.data.Dataset.from_tensors((features, labels)).repeat(200)
    before = model.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"]
    model.fit(dataset, verbose=0)
    after = model.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"]
    assert after < 0.2 * before


@pytest.mark.parametrize("cls", TASKS)
def test_dropout_before_a_classifier(cls):
    """Only in training, at the rate of `classifier_dropout`; none before the answer's span."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    features = features_for(cls)

    def outputs(training, **changes):
        keras.utils.set_random_seed(0)
        model = randomize(cls(config_of(**quiet, **changes)))
        return next(iter(model(features, training=training).values())).numpy()

    expected = outputs(False, classifier_dropout=0.5)
    np.testing.assert_allclose(expected, outputs(True), atol=1e-6)  # XLA rounds otherwise
    changed = not np.allclose(expected, outputs(True, classifier_dropout=0.5), atol=1e-6)
    assert changed == (cls is not BertForQuestionAnswering)


def test_folders_serve_other_classes(tmp_path):
    whole = randomize(BertForPreTraining(config_of()))
    whole.save_pretrained(tmp_path)
    for cls in PRETRAINING:
        model = cls.from_pretrained(tmp_path, dtype="mixed_bfloat16")
        assert model.dtype_policy.name == "mixed_bfloat16"
        for name, value in arrays(model).items():
            np.testing.assert_array_equal(value, arrays(whole)[name], err_msg=name)


def test_heads_that_a_folder_lacks_are_fresh_with_a_warning(tmp_path):
    bare = randomize(BertModel(config_of()))
    bare.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"has no weights for mlm, nsp; they are randomly init"):
        model = BertForPreTraining.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        arrays(model)["bert/pooler/dense/kernel"], arrays(bare)["bert/pooler/dense/kernel"]
    )
    fresh = arrays(model)
    for name in ("mlm/transform/kernel", "nsp/classifier/kernel"):
        assert 0.005 < np.std(fresh[name]) < 0.04  # drawn, with the config's 0.02
    assert (fresh["mlm/layer_norm/gamma"] == 1).all() and (fresh["mlm/output_bias"] == 0).all()
    assert np.std(arrays(BertModel(config_of()))["bert/pooler/dense/kernel"]) > 0.005


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        BertModel.from_pretrained(tmp_path / "nowhere")
    model = BertModel(config_of())
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"embeddings has the shape \(53, 15\), .* \(54, 15\)"):
        BertModel(config_of(vocab_size=54)).load_pretrained(tmp_path)
    with h5py.File(tmp_path / "weights.h5", "a") as file:
        del file["bert/encoder/layer_1/output/bias"]
    with pytest.raises(UserError, match=r"lacks bert/encoder/layer_1/output/bias\. To skip such"):
        BertModel.from_pretrained(tmp_path)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(UserError, match=r"has 2 layers, but there are only 1 tensors"):
        BertModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot read the config .*config.json: No such file"):
        BertModel.from_pretrained(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match=r"cannot read the weights .*weights.h5"):
        BertModel.from_pretrained(tmp_path)


def test_fields_of_the_config_are_no_arguments_of_a_model():
    message = (
        "^set num_labels in the config: "
        r"BertForSequenceClassification\(BertConfig\(num_labels=[.]{3}\)\)[.]$"
    )
    with pytest.raises(UserError, match=message):
        BertForSequenceClassification(config_of(), num_labels=3)
