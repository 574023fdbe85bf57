"""TensorFlow 2 checkpoints of the Model Garden, by the names of its older and newer encoders."""

import json

import numpy as np
import pytest
import tensorflow as tf
from marks import slow
from test_weights import assert_same_weights, config_of, made

from kbert import BertForMaskedLM, BertModel
from kbert.errors import UserError

ATTENTION = {"query": "_query_dense", "key": "_key_dense", "value": "_value_dense"}


def block(weights, output):
    """The attributes of a block's layers; the heads have an axis of their own."""
    H, K, D = 3, 5, 15
    named = {
        f"_attention_layer_norm/{x}": weights(f"attention_norm/{x}") for x in ("gamma", "beta")
    }
    named |= {f"_output_layer_norm/{x}": weights(f"output_norm/{x}") for x in ("gamma", "beta")}
    named |= {f"_intermediate_dense/{x}": weights(f"intermediate/{x}") for x in ("kernel", "bias")}
    named |= {f"_output_dense/{x}": weights(f"output/{x}") for x in ("kernel", "bias")}
    for ours, theirs in ATTENTION.items():
        name = f"_attention_layer/{theirs}"
        named[f"{name}/kernel"] = weights(f"attention/{ours}/kernel").reshape(D, H, K)
        named[f"{name}/bias"] = weights(f"attention/{ours}/bias").reshape(H, K)
    named[f"{output}/kernel"] = weights("attention/output/kernel").reshape(H, K, D)
    return named | {f"{output}/bias": weights("attention/output/bias")}


def older(arrays):
    """Layers with numbers, the pooler beside the NSP head."""
    named = {}
    for i, table in enumerate(("word", "position", "token_type")):
        name = f"bert/embeddings/{table}_embeddings/embeddings"
        named[f"encoder/layer_with_weights-{i}/embeddings"] = arrays[name]
    for x in ("gamma", "beta"):
        named[f"encoder/layer_with_weights-3/{x}"] = arrays[f"bert/embeddings/layer_norm/{x}"]
    for i in range(2):
        rows = block(
            lambda x, i=i: arrays[f"bert/encoder/layer_{i}/{x}"], "_attention_output_dense"
        )
        named |= {f"encoder/layer_with_weights-{i + 4}/{name}": x for name, x in rows.items()}
    for x in ("kernel", "bias"):
        named[f"next_sentence.pooler_dense/{x}"] = arrays[f"bert/pooler/dense/{x}"]
    return named


def numbered_pooler(arrays):
    named = {f"model/{name}": x for name, x in older(arrays).items() if "pooler" not in name}
    named = {name.replace("model/encoder/", "model/"): x for name, x in named.items()}
    for x in ("kernel", "bias"):
        named[f"model/layer_with_weights-6/{x}"] = arrays[f"bert/pooler/dense/{x}"]
    return named


def newer(arrays):
    """Layers with names, and the MLM head, which shares the word embeddings."""
    words = arrays["bert/embeddings/word_embeddings/embeddings"]
    named = {
        "encoder/_embedding_layer/embeddings": words,
        "masked_lm/embedding_table": words,
        "masked_lm/bias": arrays["mlm/output_bias"],
    }
    for theirs, ours in (("position", "position"), ("type", "token_type")):
        array = arrays[f"bert/embeddings/{ours}_embeddings/embeddings"]
        named[f"encoder/_{theirs}_embedding_layer/embeddings"] = array
    for x in ("gamma", "beta"):
        named[f"encoder/_embedding_norm_layer/{x}"] = arrays[f"bert/embeddings/layer_norm/{x}"]
        named[f"masked_lm/layer_norm/{x}"] = arrays[f"mlm/layer_norm/{x}"]
    for x in ("kernel", "bias"):
        named[f"masked_lm/dense/{x}"] = arrays[f"mlm/transform/{x}"]
    for i in range(2):
        rows = block(
            lambda x, i=i: arrays[f"bert/encoder/layer_{i}/{x}"], "_attention_layer/_output_dense"
        )
        named |= {f"encoder/_transformer_layers/{i}/{name}": x for name, x in rows.items()}
    return named


def write(folder, named, config):
    """Writes an object-based checkpoint, as `tf.train.Checkpoint.save` does."""
    tree = {}
    for name, array in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tf.Variable(array)

    def saved(node):
        if isinstance(node, dict):
            return tf.train.Checkpoint(**{name: saved(child) for name, child in node.items()})
        return node

    saved(tree).save(str(folder / "bert_model.ckpt"))
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    names += ("intermediate_size", "max_position_embeddings", "type_vocab_size")
    values = {name: getattr(config, name) for name in names} | {"hidden_act": "gelu"}
    (folder / "bert_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("cls", "names"),
    [("BertModel", older), *slow(("BertModel", numbered_pooler)), ("BertForMaskedLM", newer)],
)
def test_names_of_the_model_garden(cls, names, tmp_path):
    model = made(cls, config_of(hidden_act="gelu_new"))
    named = names({name: np.array(weight) for name, weight in model.named_weights().items()})
    write(tmp_path, named, model.config)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.hidden_act == "gelu_new"  # the Model Garden's GELU
    assert_same_weights(again, model)


def test_unknown_names(tmp_path):
    config = config_of(hidden_act="gelu_new")
    write(tmp_path, {"my_bert/block_0/kernel": np.zeros((3, 3), np.float32)}, config)
    message = (
        r"is a TensorFlow 2 checkpoint with unknown names: my_bert/block_0/kernel. .*named_weights"
    )
    with pytest.raises(UserError, match=message):
        BertModel.from_pretrained(tmp_path)
    (tmp_path / "bert_config.json").unlink()
    message = r"has the TensorFlow checkpoint bert_model.ckpt-1, but no bert_config.json, which"
    with pytest.raises(UserError, match=message):
        BertForMaskedLM.from_pretrained(tmp_path)
