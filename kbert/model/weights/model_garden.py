"""Renames the tensors in TensorFlow 2 checkpoints of BERT from the TF2 Model Garden.

In these checkpoints, the name of a variable is its path of attributes from the model. Older
encoders of the Model Garden (`official/nlp`) number their layers: 0 to 2 are the embeddings, 3 is
their LayerNorm, the blocks start at 4, and the pooler is last. Newer encoders name their layers.
"""

import math
import pathlib
import re

from kbert.errors import UserError
from kbert.model.weights.tensors import Tensors, abbreviate_names

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_BLOCK = {
    "_attention_layer/_query_dense": "attention/self/query",
    "_attention_layer/_key_dense": "attention/self/key",
    "_attention_layer/_value_dense": "attention/self/value",
    "_attention_layer/_output_dense": "attention/output/dense",
    "_attention_output_dense": "attention/output/dense",
    "_attention_layer_norm": "attention/output/LayerNorm",
    "_intermediate_dense": "intermediate/dense",
    "_output_dense": "output/dense",
    "_output_layer_norm": "output/LayerNorm",
}
_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
_OTHERS = {
    "_embedding_layer/embeddings": "bert/embeddings/word_embeddings",
    "_position_embedding_layer/embeddings": "bert/embeddings/position_embeddings",
    "_type_embedding_layer/embeddings": "bert/embeddings/token_type_embeddings",
    "_embedding_norm_layer": "bert/embeddings/LayerNorm",
    "_pooler_layer": "bert/pooler/dense",
    "next_sentence..pooler_dense": "bert/pooler/dense",
    "masked_lm/dense": "cls/predictions/transform/dense",
    "masked_lm/layer_norm": "cls/predictions/transform/LayerNorm",
    "masked_lm/bias": "cls/predictions/output_bias",
    "masked_lm/embedding_table": "bert/embeddings/word_embeddings",
}
_NUMBERED = re.compile(r"layer_with_weights-(\d+)/(.+)")
_NAMED = re.compile(r"_transformer_layers/(\d+)/(.+)")
_NOT_WEIGHTS = re.compile(
    r"(.*/)?(optimizer|\.OPTIMIZER_SLOT|save_counter|_CHECKPOINTABLE_\w+)(/.*)?"
)


def rename_tensors(tensors: Tensors, prefix: pathlib.Path) -> Tensors:
    """Returns the tensors with the names and shapes of google-research/bert.

    Tensors that google-research/bert does not have keep their names. The optimizer's state is
    omitted. Raises UserError if there is no encoder with the names of the Model Garden.
    """
    plain = {name.removesuffix(SUFFIX): name for name in tensors}
    plain = {name: full for name, full in plain.items() if not _NOT_WEIGHTS.fullmatch(name)}
    blocks = {_layer_number(name) for name in plain if "_attention_layer/" in name}
    if None in blocks or not blocks:
        raise UserError(
            f"{prefix} is a TensorFlow 2 checkpoint with unknown names: {abbreviate_names(plain)}. "
            f"kbert reads the encoders of the TF2 Model Garden. To use another one, load the "
            f"checkpoint in the code that wrote it, and assign its weights to "
            f"kbert.BertModel(config).named_weights()."
        )
    names = {_google_name(name, len(blocks)): full for name, full in plain.items()}
    shapes = {name: _merged_heads_shape(name, tensors.shapes[full]) for name, full in names.items()}
    return Tensors(shapes, lambda name: tensors[names[name]].reshape(shapes[name]))


def _strip_wrappers(name):
    """Removes the names of the models that contain the encoder or the heads from a name's start."""
    return re.sub(r"^(model/|encoder/|bert/|backbone/)+", "", name)


def _layer_number(name):
    match = _NUMBERED.match(_strip_wrappers(name)) or _NAMED.match(_strip_wrappers(name))
    return match and match[1]


def _google_name(name, N):
    """Returns the name in google-research/bert, or `name` (without `SUFFIX`) if there is none."""
    layer, _, variable = (inner := _strip_wrappers(name)).rpartition("/")
    if match := _NAMED.fullmatch(inner):
        return _block_weight_name(int(match[1]), match[2]) or name
    if match := _NUMBERED.fullmatch(inner):
        number, rest = int(match[1]), match[2]
        if number < 3 and rest in ("embeddings", "position_embeddings"):
            return f"bert/embeddings/{_TABLES[number]}"
        if number == 3 and rest in ("gamma", "beta"):
            return f"bert/embeddings/LayerNorm/{rest}"
        if number == N + 4 and rest in ("kernel", "bias"):
            return f"bert/pooler/dense/{rest}"
        return _block_weight_name(number - 4, rest) or name
    if inner in _OTHERS:
        return _OTHERS[inner]
    return f"{_OTHERS[layer]}/{variable}" if layer in _OTHERS else name


def _block_weight_name(i, rest):
    layer, _, variable = rest.rpartition("/")
    return layer in _BLOCK and f"bert/encoder/layer_{i}/{_BLOCK[layer]}/{variable}"


def _merged_heads_shape(name, shape):
    """Returns a weight's shape after merging the axis of its attention heads."""
    if name.endswith("/bias") and len(shape) == 2:
        return (math.prod(shape),)
    if name.endswith("attention/output/dense/kernel") and len(shape) == 3:
        return math.prod(shape[:2]), shape[2]
    return (shape[0], math.prod(shape[1:])) if len(shape) == 3 else shape
