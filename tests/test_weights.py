"""Weights in and out: against HF transformers, google-research/bert, KerasHub, and damage."""

import dataclasses
import json
import warnings

import h5py
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tensorflow as tf
import torch
import transformers
from numpy_bert import bert

import kbert
from kbert import BertConfig, BertForPreTraining, BertModel
from kbert.errors import UserError
from kbert.model.conversion import convert
from kbert.model.weights.tensors import weight_shapes

B, L, C = 3, 11, 4
# float32, and another library's order of additions
TOLERANCE = 1e-5
CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
)
FORMATS = ("kbert", "google", "hf", "keras_hub")
# kbert's name of an output -> HF's
OUTPUTS = {
    "last_hidden_state": "last_hidden_state",
    "pooler_output": "pooler_output",
    "mlm_logits": "prediction_logits",
    "nsp_logits": "seq_relationship_logits",
    "logits": "logits",
    "start_logits": "start_logits",
    "end_logits": "end_logits",
}


def config_of(**changes):
    values = {"vocab_size": 53, "hidden_size": 15, "num_hidden_layers": 2, "num_labels": 5}
    values |= {"intermediate_size": 37, "max_position_embeddings": 13, "type_vocab_size": 3}
    return BertConfig(**{**values, "num_attention_heads": 3, **changes})


def features_of(choices=False):
    rng = np.random.default_rng(0)
    shape = (B, C, L) if choices else (B, L)
    lengths = rng.integers(3, L + 1, shape[:-1])[..., None]
    places = np.arange(L)
    return {
        "input_ids": rng.integers(0, 53, shape).astype("int32"),
        "attention_mask": (places < lengths).astype("int32"),
        "token_type_ids": ((places >= 2) & (places < lengths)).astype("int32"),
    }


def made(name, config=None, seed=1):
    """A kbert model whose weights have no zeros and ones."""
    model = getattr(kbert, name)(config or config_of())
    rng = np.random.default_rng(seed)
    for weight in model.named_weights().values():
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


def hf_made(name, **changes):
    """An HF model in eval mode, as `made`."""
    config = dict(vocab_size=53, hidden_size=15, num_hidden_layers=2, num_labels=5)
    config |= dict(intermediate_size=37, max_position_embeddings=13, type_vocab_size=3)
    config = transformers.BertConfig(**{**config, "num_attention_heads": 3, **changes})
    model = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def arrays(model):
    return {name: np.array(weight) for name, weight in model.named_weights().items()}


def assert_same_weights(found, expected):
    found, expected = arrays(found), arrays(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def assert_close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, atol=TOLERANCE, rtol=TOLERANCE)


def assert_same_outputs(model, hf):
    features = features_of(choices=type(model).__name__ == "BertForMultipleChoice")
    with torch.no_grad():
        expected = hf(**{name: torch.tensor(value).long() for name, value in features.items()})
    found = model(features)
    assert found
    for name, value in found.items():
        assert_close(value, expected[OUTPUTS[name]].numpy())


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_of_shapes_is_that_of_the_models(tied):
    config = config_of(tie_word_embeddings=tied)
    seen = {}
    for name in CLASSES:
        weights = getattr(kbert, name)(config).named_weights()
        seen |= {name: tuple(weight.shape) for name, weight in weights.items()}
    assert seen == weight_shapes(config)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("format", FORMATS)
def test_round_trips_are_bit_equal(name, format, tmp_path):
    config = config_of(
        hidden_act="gelu_new",
        label_names=("a", "b", "ü", "d", "e"),
        problem_type="multi_label_classification",
        attention_probs_dropout_prob=0.2,
        classifier_dropout=0.3,
        initializer_range=0.05,
    )
    model = made(name, config)
    lost = {"keras_hub": ["nsp", "token_classifier", "span_classifier", "choice_classifier"]}
    lost["google"] = ["token_classifier", "choice_classifier"]
    no_pooler = (
        format == "keras_hub" and model.bert.pooler is None if name != "BertModel" else False
    )
    expected = config
    if (name, format) == ("BertForQuestionAnswering", "hf"):  # there, start and end are the labels
        expected = dataclasses.replace(config, num_labels=2, label_names=None)
    if no_pooler:
        with pytest.raises(UserError, match="BertBackbone has a pooler, but this model has none"):
            model.save_pretrained(tmp_path, format, allow_missing=lost[format])
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path, format, allow_missing=lost.get(format, ()))
        again = getattr(kbert, name).from_pretrained(tmp_path)
    assert again.config == expected
    parts = lost.get(format, [])
    assert_same_weights(
        type("Kept", (), {"named_weights": lambda: kept(again, parts)}),
        type("Kept", (), {"named_weights": lambda: kept(model, parts)}),
    )


def kept(model, lost):
    named = model.named_weights()
    return {name: value for name, value in named.items() if not name.startswith(tuple(lost))}


# HF transformers


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
def test_hf_in_and_out(name, act, tmp_path):
    labels = 2 if name == "BertForQuestionAnswering" else 5
    hf = hf_made(name, hidden_act=act, layer_norm_eps=1e-6, num_labels=labels)
    hf.save_pretrained(tmp_path / "hf")
    model = getattr(kbert, name).from_pretrained(tmp_path / "hf")
    assert model.config == config_of(hidden_act=act, layer_norm_eps=1e-6, num_labels=labels)
    assert_same_outputs(model, hf)
    model.save_pretrained(tmp_path / "again", format="hf")
    again, report = getattr(transformers, name).from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(report.values()), report
    assert again.config.architectures == [name]
    for key, value in hf.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert_same_outputs(model, again.eval())


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_hf_untied(name, tmp_path):
    hf = hf_made(name, tie_word_embeddings=False)
    hf.save_pretrained(tmp_path / "hf")
    model = getattr(kbert, name).from_pretrained(tmp_path / "hf")
    assert "mlm/decoder" in model.named_weights()
    assert_same_outputs(model, hf)
    model.save_pretrained(tmp_path / "again", format="hf")
    again, report = getattr(transformers, name).from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_same_outputs(model, again.eval())
    with pytest.raises(UserError, match=r"format google does not support mlm/decoder"):
        model.save_pretrained(tmp_path / "google", format="google")


def saved_hf(folder, name="BertForPreTraining", **changes):
    """An HF folder, its model, and its tensors, to be spelled otherwise."""
    hf = hf_made(name, **changes)
    hf.save_pretrained(folder)
    return hf, safetensors.torch.load_file(folder / "model.safetensors")


def respell(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_hf_older_spellings(tmp_path):
    hf, tensors = saved_hf(tmp_path)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in tensors.items()
    }
    tensors["bert.embeddings.position_ids"] = torch.arange(13)[None]
    tensors["cls.predictions.decoder.weight"] = tensors[
        "bert.embeddings.word_embeddings.weight"
    ].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    respell(tmp_path, tensors)
    assert_same_outputs(BertForPreTraining.from_pretrained(tmp_path), hf)
    # only the twins
    del tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
    respell(tmp_path, tensors)
    assert_same_outputs(BertForPreTraining.from_pretrained(tmp_path), hf)


def test_hf_without_prefix_and_without_pooler(tmp_path):
    hf, tensors = saved_hf(tmp_path, "BertModel")
    assert "embeddings.word_embeddings.weight" in tensors
    del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]
    respell(tmp_path, tensors)
    with pytest.warns(UserWarning, match=r"has no weights for bert/pooler; they are randomly init"):
        model = BertModel.from_pretrained(tmp_path)
    inputs = {name: torch.tensor(value).long() for name, value in features_of().items()}
    with torch.no_grad():
        expected = hf(**inputs).last_hidden_state
    assert_close(model(features_of())["last_hidden_state"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_hf_other_types(dtype, tmp_path):
    hf, tensors = saved_hf(tmp_path)
    respell(tmp_path, {name: value.to(dtype) for name, value in tensors.items()})
    model = BertForPreTraining.from_pretrained(tmp_path)
    kernel = hf.bert.pooler.dense.weight.detach().to(dtype).to(torch.float32).numpy().T
    np.testing.assert_array_equal(arrays(model)["bert/pooler/dense/kernel"], kernel)
    assert_same_outputs(model, hf.to(dtype).to(torch.float32))


def test_hf_shards(tmp_path):
    hf = hf_made("BertForPreTraining")
    hf.save_pretrained(tmp_path, max_shard_size="6KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_outputs(BertForPreTraining.from_pretrained(tmp_path), hf)
    next(tmp_path.glob("model-00001-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"cannot read .*model-00001-of-.*safetensors: No such"):
        BertForPreTraining.from_pretrained(tmp_path)
    for hostile in ({"a": "../x.safetensors"}, {"a": 1}, [], None):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": hostile}))
        with pytest.raises(
            UserError, match=r"index.json: weight_map must name files of this folder"
        ):
            BertForPreTraining.from_pretrained(tmp_path)


def test_hf_padded_vocabulary_and_a_wider_model_of_another_class(tmp_path):
    hf = hf_made("BertForPreTraining", vocab_size=64)
    hf.save_pretrained(tmp_path)
    model = kbert.BertForMaskedLM.from_pretrained(tmp_path)  # passes over nsp and the pooler
    assert model.config.vocab_size == 64
    inputs = {name: torch.tensor(value).long() for name, value in features_of().items()}
    with torch.no_grad():
        expected = hf(**inputs).prediction_logits
    assert_close(model(features_of())["logits"], expected)


def test_hf_heads_of_one_name_are_not_confused(tmp_path):
    hf_made("BertForTokenClassification").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no weights for bert/pooler, sequence_classifier"):
        kbert.BertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("architectures", [None, ["BertForSentiment"], []])
@pytest.mark.parametrize(
    "task", ["SequenceClassification", "TokenClassification", "MultipleChoice"]
)
def test_hf_classifiers_of_no_known_class_are_those_of_the_model(architectures, task, tmp_path):
    hf = hf_made(f"BertFor{task}")
    hf.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": architectures}))
    assert_same_outputs(getattr(kbert, f"BertFor{task}").from_pretrained(tmp_path), hf)


def test_label_names(tmp_path):
    names = ("no", "yes", "может", "是", "e")
    hf = hf_made("BertForSequenceClassification")
    hf.config.id2label = dict(enumerate(names))
    hf.config.problem_type = "multi_label_classification"
    hf.save_pretrained(tmp_path / "hf")
    model = kbert.BertForSequenceClassification.from_pretrained(tmp_path / "hf")
    assert model.config.label_names == names
    assert model.config.problem_type == "multi_label_classification"
    model.save_pretrained(tmp_path / "again", format="hf")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    assert again.id2label == dict(enumerate(names)) and again.label2id["是"] == 3
    assert again.problem_type == "multi_label_classification"


def test_labels_that_hf_does_not_name(tmp_path):
    hf_made("BertForSequenceClassification").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for labels in ({"1": "a", "2": "b"}, {"0": "a", "1": "a"}, {"0": "a", "1": "\ud800"}):
        path.write_text(json.dumps(values | {"id2label": labels}))
        with pytest.warns(UserWarning, match="id2label does not give each label its own"):
            config = BertModel.from_pretrained(tmp_path, allow_missing="classifier").config
        assert (config.num_labels, config.label_names) == (2, None)
    path.write_text(json.dumps(values | {"id2label": {"0": 0, "1": 1}}))
    config = BertModel.from_pretrained(tmp_path, allow_missing="classifier").config
    assert config.label_names == ("0", "1")


def test_a_head_of_other_labels_forgets_their_names(tmp_path):
    config = config_of(label_names=("a", "b", "c", "d", "e"))
    made("BertForTokenClassification", config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no weights for token_classifier; they are"):
        model = kbert.BertForTokenClassification.from_pretrained(
            tmp_path, num_labels=3, allow_missing=["token_classifier"]
        )
    assert model.config.label_names is None
    same = kbert.BertForTokenClassification.from_pretrained(tmp_path, num_labels=5)
    assert same.config == config


def test_hf_poolers_that_its_class_has_not(tmp_path):
    """Then HF would report unexpected weights, or missing ones."""
    made("BertForPreTraining").save_pretrained(tmp_path / "a")
    with h5py.File(tmp_path / "a/weights.h5", "a") as file:
        del file["nsp"]
    lines = []
    convert(tmp_path / "a", tmp_path / "b", "hf", report=lines.append)
    assert "note: HF's BertForMaskedLM has no pooler, so the model's pooler is omitted." in lines
    _, report = transformers.BertForMaskedLM.from_pretrained(
        tmp_path / "b", output_loading_info=True
    )
    assert not any(report.values()), report
    bare = BertModel(config_of(), add_pooling_layer=False)
    with pytest.warns(UserWarning, match="HF's BertModel has a pooler, but this model has none"):
        bare.save_pretrained(tmp_path / "c", format="hf")


def test_a_fresh_head_of_another_size(tmp_path):
    model = made("BertForSequenceClassification")
    model.save_pretrained(tmp_path, format="hf")
    with pytest.raises(UserError, match=r"classifier.weight has the shape \(5, 15\).*\(3, 15\)"):
        kbert.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    expected = (
        "has no weights for sequence_classifier; they are randomly initialized and need training. "
        "This is expected"
    )
    with pytest.warns(UserWarning, match=expected):
        wider = kbert.BertForSequenceClassification.from_pretrained(
            tmp_path, num_labels=3, allow_missing=["sequence_classifier"]
        )
    assert wider(features_of())["logits"].shape == (B, 3)
    np.testing.assert_array_equal(
        arrays(wider)["bert/pooler/dense/kernel"], arrays(model)["bert/pooler/dense/kernel"]
    )


def test_a_skipped_head_keeps_its_values_without_a_warning(tmp_path):
    made("BertForSequenceClassification").save_pretrained(tmp_path)
    model = made("BertForSequenceClassification", config_of(num_labels=3), seed=2)
    before = arrays(model)["sequence_classifier/dense/kernel"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_pretrained(tmp_path, skip_parts=["sequence_classifier"])
    expected = arrays(made("BertForSequenceClassification"))["bert/pooler/dense/kernel"]
    np.testing.assert_array_equal(arrays(model)["bert/pooler/dense/kernel"], expected)
    np.testing.assert_array_equal(arrays(model)["sequence_classifier/dense/kernel"], before)


# google-research/bert

# From its modeling.py and run_pretraining.py: what it creates for two layers, and the shapes.
GOOGLE = {
    "bert/embeddings/word_embeddings": (53, 15),
    "bert/embeddings/position_embeddings": (13, 15),
    "bert/embeddings/token_type_embeddings": (3, 15),
    "bert/embeddings/LayerNorm/gamma": (15,),
    "bert/embeddings/LayerNorm/beta": (15,),
    "bert/pooler/dense/kernel": (15, 15),
    "bert/pooler/dense/bias": (15,),
    "cls/predictions/transform/dense/kernel": (15, 15),
    "cls/predictions/transform/dense/bias": (15,),
    "cls/predictions/transform/LayerNorm/gamma": (15,),
    "cls/predictions/transform/LayerNorm/beta": (15,),
    "cls/predictions/output_bias": (53,),
    "cls/seq_relationship/output_weights": (2, 15),
    "cls/seq_relationship/output_bias": (2,),
}
for i in range(2):
    for name in ("query", "key", "value"):
        GOOGLE[f"bert/encoder/layer_{i}/attention/self/{name}/kernel"] = (15, 15)
        GOOGLE[f"bert/encoder/layer_{i}/attention/self/{name}/bias"] = (15,)
    for name, shape in {
        "attention/output/dense": (15, 15),
        "intermediate/dense": (15, 37),
        "output/dense": (37, 15),
    }.items():
        GOOGLE[f"bert/encoder/layer_{i}/{name}/kernel"] = shape
        GOOGLE[f"bert/encoder/layer_{i}/{name}/bias"] = shape[-1:]
    for name in ("attention/output", "output"):
        GOOGLE[f"bert/encoder/layer_{i}/{name}/LayerNorm/gamma"] = (15,)
        GOOGLE[f"bert/encoder/layer_{i}/{name}/LayerNorm/beta"] = (15,)
GOOGLE_CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 15,
    "initializer_range": 0.02,
    "intermediate_size": 37,
    "max_position_embeddings": 13,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "pooler_type": "first_token_transform",
    "type_vocab_size": 3,
    "vocab_size": 53,
}


def write_google(folder, shapes=GOOGLE, **others):
    """A folder as TensorFlow 1 writes it, with an optimizer's slots; returns the values."""
    rng = np.random.default_rng(3)
    values = {name: rng.normal(scale=0.3, size=s).astype("f4") for name, s in shapes.items()}
    folder.mkdir(exist_ok=True)
    (folder / "bert_config.json").write_text(json.dumps(GOOGLE_CONFIG))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in values.items():
            tf.compat.v1.get_variable(name, initializer=value, use_resource=False)
            for slot in ("adam_m", "adam_v"):
                tf.compat.v1.get_variable(f"{name}/{slot}", initializer=value, use_resource=False)
        tf.compat.v1.get_variable("global_step", initializer=np.int64(7), use_resource=False)
        for name, value in others.items():
            tf.compat.v1.get_variable(name, initializer=value, use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / "bert_model.ckpt"))
    return values


def test_google_in(tmp_path):
    values = write_google(tmp_path)
    model = BertForPreTraining.from_pretrained(tmp_path)
    assert model.config == config_of(hidden_act="gelu_new", num_labels=2)
    found = arrays(model)
    np.testing.assert_array_equal(
        found["bert/encoder/layer_1/attention/value/kernel"],
        values["bert/encoder/layer_1/attention/self/value/kernel"],
    )
    np.testing.assert_array_equal(
        found["nsp/classifier/kernel"], values["cls/seq_relationship/output_weights"].T
    )
    assert len(found) == len(values)
    features = features_of() | {"masked_positions": np.array([[1], [2], [0]], "int32")}
    expected = bert(found, model.config, features)
    assert_close(model(features)["mlm_logits"], expected["mlm_logits"])
    assert_close(model(features)["nsp_logits"], expected["nsp_logits"])


def test_google_out(tmp_path):
    model = made("BertForPreTraining", config_of(hidden_act="gelu_new", num_labels=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.save_pretrained(tmp_path, format="google")
    checkpoint = str(tmp_path / "bert_model.ckpt")
    found = {name: tuple(shape) for name, shape in tf.train.list_variables(checkpoint)}
    assert found == GOOGLE
    written = json.loads((tmp_path / "bert_config.json").read_text())
    assert written == {
        k: v for k, v in GOOGLE_CONFIG.items() if k not in ("directionality", "pooler_type")
    }
    # as its code reads it: init_from_checkpoint into a graph of variables of these names
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            name: tf.compat.v1.get_variable(name, shape, use_resource=False)
            for name, shape in GOOGLE.items()
        }
        tf.compat.v1.train.init_from_checkpoint(
            str(tmp_path / "bert_model.ckpt"), {name: name for name in GOOGLE}
        )
        session.run(tf.compat.v1.global_variables_initializer())
        values = session.run(variables)
    ours = arrays(model)
    np.testing.assert_array_equal(
        values["cls/seq_relationship/output_weights"], ours["nsp/classifier/kernel"].T
    )
    np.testing.assert_array_equal(
        values["bert/encoder/layer_1/output/dense/kernel"],
        ours["bert/encoder/layer_1/output/kernel"],
    )
    np.testing.assert_array_equal(
        values["bert/embeddings/LayerNorm/beta"], ours["bert/embeddings/layer_norm/beta"]
    )


def test_google_out_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("kbert.model.weights.google.SHARD_BYTES", 4000)
    model = made("BertForPreTraining", config_of(hidden_act="gelu_new"))
    model.save_pretrained(tmp_path, format="google")
    names = sorted(path.name for path in tmp_path.iterdir())
    count = len(names) - 2
    assert names == [
        "bert_config.json",
        *(f"bert_model.ckpt.data-{i:05d}-of-{count:05d}" for i in range(count)),
        "bert_model.ckpt.index",
    ]
    assert count > 3
    assert_same_weights(BertForPreTraining.from_pretrained(tmp_path), model)
    found = tf.train.list_variables(str(tmp_path / "bert_model.ckpt"))
    assert {name: tuple(shape) for name, shape in found} == GOOGLE


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("BertForSequenceClassification", ""), ("BertForQuestionAnswering", "cls/squad/")],
)
def test_google_fine_tuned(name, theirs, tmp_path):
    units = 2 if theirs else 5
    shapes = {n: s for n, s in GOOGLE.items() if not n.startswith("cls/")}
    shapes |= {f"{theirs}output_weights": (units, 15), f"{theirs}output_bias": (units,)}
    values = write_google(tmp_path, shapes)
    model = getattr(kbert, name).from_pretrained(tmp_path)
    (kernel,) = [v for n, v in arrays(model).items() if n.endswith("_classifier/dense/kernel")]
    np.testing.assert_array_equal(kernel, values[f"{theirs}output_weights"].T)
    assert model.config.num_labels == units


def test_google_out_says_what_its_code_computes_otherwise(tmp_path):
    model = made("BertModel", config_of(layer_norm_eps=1e-6))
    with pytest.warns(UserWarning) as caught:
        model.save_pretrained(tmp_path, format="google")
    texts = [str(warning.message) for warning in caught]
    assert [
        text for text in texts if "computes with hidden_act gelu_new; this model has gelu," in text
    ]
    assert [text for text in texts if "layer_norm_eps 1e-12; this model has 1e-06," in text]
    again = BertModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert json.loads((tmp_path / "bert_config.json").read_text())["hidden_act"] == "gelu"


# KerasHub


def hub_backbone(dtype=None):
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=53,
        num_layers=2,
        num_heads=3,
        hidden_dim=15,
        intermediate_dim=37,
        max_sequence_length=13,
        num_segments=3,
        dtype=dtype,
    )
    rng = np.random.default_rng(4)
    for weight in backbone.weights:
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return backbone


def hub_inputs():
    features = features_of()
    return {
        "token_ids": features["input_ids"],
        "padding_mask": features["attention_mask"],
        "segment_ids": features["token_type_ids"],
    }


def assert_same_backbone(model, backbone):
    """Compares where the mask says token: KerasHub's padding queries see their own way."""
    found, expected = model(features_of()), backbone(hub_inputs())
    real = features_of()["attention_mask"].astype(bool)
    assert_close(
        np.asarray(found["last_hidden_state"])[real], np.asarray(expected["sequence_output"])[real]
    )
    assert_close(found["pooler_output"], expected["pooled_output"])


def test_keras_hub_backbone_in_and_out(tmp_path):
    backbone = hub_backbone()
    backbone.save_to_preset(tmp_path / "hub")
    model = BertModel.from_pretrained(tmp_path / "hub")
    assert model.config == config_of(hidden_act="gelu_new", num_labels=2)
    assert_same_backbone(model, backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.save_pretrained(tmp_path / "again", format="keras_hub")
    again = keras_hub.models.Backbone.from_preset(str(tmp_path / "again"))
    assert type(again) is keras_hub.models.BertBackbone
    for found, expected in zip(again.weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(np.array(found), np.array(expected), err_msg=found.path)
    assert_same_backbone(model, again)


def test_keras_hub_in_bfloat16(tmp_path):
    backbone = hub_backbone(dtype="bfloat16")
    backbone.save_to_preset(tmp_path)
    model = BertModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        arrays(model)["bert/embeddings/word_embeddings/embeddings"],
        np.array(backbone.token_embedding.embeddings).astype("float32"),
    )


def test_keras_hub_classifier_in_and_out(tmp_path):
    rng = np.random.default_rng(5)
    hub = keras_hub.models.BertTextClassifier(hub_backbone(), num_classes=5, dropout=0.2)
    hub.output_dense.kernel.assign(rng.normal(size=(15, 5)))
    hub.output_dense.bias.assign(rng.normal(size=5))
    hub.save_to_preset(tmp_path / "hub")
    model = kbert.BertForSequenceClassification.from_pretrained(tmp_path / "hub")
    assert (model.config.num_labels, model.config.classifier_dropout) == (5, 0.2)
    assert_close(model(features_of())["logits"], hub(hub_inputs()))
    model.save_pretrained(tmp_path / "again", format="keras_hub")
    again = keras_hub.models.TextClassifier.from_preset(str(tmp_path / "again"), preprocessor=None)
    assert again.get_config()["dropout"] == 0.2
    for found, expected in zip(again.weights, hub.weights, strict=True):
        np.testing.assert_array_equal(np.array(found), np.array(expected), err_msg=found.path)
    assert_close(model(features_of())["logits"], again(hub_inputs()))


def test_keras_hub_older_presets(tmp_path):
    """Files in which Keras called the layers otherwise, and the classifier by its former name."""
    hub = keras_hub.models.BertTextClassifier(hub_backbone(), num_classes=5)
    hub.save_to_preset(tmp_path)
    for name in ("model.weights.h5", "task.weights.h5"):
        with h5py.File(tmp_path / name, "a") as file:
            file.move("layers", "_layer_checkpoint_dependencies")
    task = (tmp_path / "task.json").read_text()
    (tmp_path / "task.json").write_text(task.replace("BertTextClassifier", "BertClassifier"))
    model = kbert.BertForSequenceClassification.from_pretrained(tmp_path)
    assert_close(model(features_of())["logits"], hub(hub_inputs()))


def test_keras_hub_masked_lm_is_said_to_differ(tmp_path):
    hub = keras_hub.models.BertMaskedLM(hub_backbone())
    rng = np.random.default_rng(6)
    for weight in hub.masked_lm_head.weights:
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    hub.save_to_preset(tmp_path / "hub")
    with pytest.warns(UserWarning, match="the exact GELU and an epsilon of 1e-5"):
        model = kbert.BertForMaskedLM.from_pretrained(tmp_path / "hub")
    np.testing.assert_array_equal(
        arrays(model)["mlm/transform/kernel"], hub.masked_lm_head._intermediate_dense.kernel
    )
    pretraining = made("BertForPreTraining", config_of(hidden_act="gelu_new"))
    with pytest.raises(UserError, match=r"keras_hub does not support nsp/.*--allow_missing=nsp"):
        pretraining.save_pretrained(tmp_path / "again", format="keras_hub")
    with pytest.warns(UserWarning, match="so its logits differ from kbert's"):
        pretraining.save_pretrained(tmp_path / "again", format="keras_hub", allow_missing=["nsp"])
    again = keras_hub.models.MaskedLM.from_preset(str(tmp_path / "again"), preprocessor=None)
    np.testing.assert_array_equal(
        arrays(pretraining)["mlm/transform/kernel"],
        again.masked_lm_head._intermediate_dense.kernel,
    )
    # It differs in just that: the day it does not, the warning can go.
    positions = np.array([[1], [2], [0]], "int32")
    theirs = np.asarray(again({**hub_inputs(), "mask_positions": positions}))
    ours = pretraining({**features_of(), "masked_positions": positions})["mlm_logits"]
    assert np.abs(theirs - np.asarray(ours)).max() > 5 * TOLERANCE
    hidden = pretraining.bert(features_of())["last_hidden_state"]
    config = config_of(hidden_act="gelu", layer_norm_eps=1e-5)
    head = kbert.model.task_heads.MaskedLMHead(config)
    head.build((None, None, 15))
    for mine, weight in zip(head.weights, pretraining.mlm.weights, strict=True):
        mine.assign(weight)
    gathered = kbert.model.encoder.gather_positions(hidden, positions)
    words = pretraining.bert.embeddings.word_embeddings.embeddings
    assert_close(theirs, head(gathered, words))
