"""The format of KerasHub presets: `config.json`, `model.weights.h5` and, for tasks, `task.*`.

Supports `BertBackbone`, `BertTextClassifier` and `BertMaskedLM`. KerasHub's encoder always computes
GELU with the tanh approximation and LayerNorm with epsilon 1e-12. Its MLM head uses the exact GELU
and epsilon 1e-5, so its outputs differ from BERT's. Fields of BertConfig that a preset lacks are
stored in its `config.json` under the key "kbert", which KerasHub ignores.
"""

import contextlib
import dataclasses
import pathlib
import warnings
from collections.abc import Collection, Iterator

import keras
import numpy as np

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.config_fields import differences, extra_fields, kbert_fields
from kbert.model.weights.native import read_arrays, write_arrays
from kbert.model.weights.tensors import ExternalWeight, FolderContents, Tensors, map_weights
from kbert.utils import atomic
from kbert.utils.formats import read_json, require_keys

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.weights.h5"
TASK_FILE, TASK_WEIGHTS_FILE = "task.json", "task.weights.h5"

_LAYER = "model.weights.h5/layers/transformer_encoder{_i}/"
_ATTENTION = _LAYER + "_self_attention_layer/"
_MLM = "task.weights.h5/layers/masked_lm_head/"
NAMES = {
    "bert/embeddings/word_embeddings": "model.weights.h5/layers/reversible_embedding",
    "bert/embeddings/position_embeddings": "model.weights.h5/layers/position_embedding",
    "bert/embeddings/token_type_embeddings": "model.weights.h5/layers/embedding",
    "bert/embeddings/layer_norm": "model.weights.h5/layers/layer_normalization",
    "bert/encoder/layer_{i}/attention/query": _ATTENTION + "query_dense",
    "bert/encoder/layer_{i}/attention/key": _ATTENTION + "key_dense",
    "bert/encoder/layer_{i}/attention/value": _ATTENTION + "value_dense",
    "bert/encoder/layer_{i}/attention/output": _ATTENTION + "output_dense",
    "bert/encoder/layer_{i}/attention_norm": _LAYER + "_self_attention_layer_norm",
    "bert/encoder/layer_{i}/intermediate": _LAYER + "_feedforward_intermediate_dense",
    "bert/encoder/layer_{i}/output": _LAYER + "_feedforward_output_dense",
    "bert/encoder/layer_{i}/output_norm": _LAYER + "_feedforward_layer_norm",
    "bert/pooler/dense": "model.weights.h5/layers/dense",
    "mlm/transform": _MLM + "_intermediate_dense",
    "mlm/layer_norm": _MLM + "_intermediate_layer_norm",
    "mlm/output_bias": _MLM + "vars/0",
    "sequence_classifier/dense": "task.weights.h5/layers/dense",
}
VARIABLES = {name: "/vars/0" for name in ("kernel", "embeddings", "gamma")}
VARIABLES |= {"bias": "/vars/1", "beta": "/vars/1"}
# Weights with a separate axis for the H heads of width K.
SHAPE_OVERRIDES = {"bert/encoder/layer_{i}/attention/output/kernel": "HKD"}
for _name in ("query", "key", "value"):
    SHAPE_OVERRIDES[f"bert/encoder/layer_{{i}}/attention/{_name}/kernel"] = "DHK"
    SHAPE_OVERRIDES[f"bert/encoder/layer_{{i}}/attention/{_name}/bias"] = "HK"


def external_weights(config: BertConfig, parts: Collection[str] = ()) -> dict[str, ExternalWeight]:
    """See `kbert.model.weights`."""
    return map_weights(config, NAMES, VARIABLES, shape_overrides=SHAPE_OVERRIDES)


# KerasHub's field -> kbert's.
FIELDS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "max_sequence_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
}
# Hard-coded in KerasHub's encoder.
FIXED: dict[str, str | float] = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-12}
_MLM_NOTE = (
    "KerasHub's BertMaskedLM computes its head with the exact GELU and an epsilon of 1e-5, unlike "
    "BERT, so its logits differ from kbert's."
)
# KerasHub compiles a loaded task, and warns if the file lacks the optimizer's step and learning
# rate.
_FRESH_OPTIMIZER = {"optimizer/vars/0": np.int32(0), "optimizer/vars/1": np.float32(5e-5)}
_OLD_LAYERS = "_layer_checkpoint_dependencies/"  # the former name of "layers/" in Keras
_TASKS = {"sequence_classifier": "BertTextClassifier", "mlm": "BertMaskedLM"}


@contextlib.contextmanager
def open_folder(folder: pathlib.Path, parts: Collection[str] = ()) -> Iterator[FolderContents]:
    """See `kbert.model.weights`; warns if there is an MLM head, as KerasHub's outputs differ."""
    saved = read_json(folder / CONFIG_FILE)
    name = saved.get("class_name")
    if name != "BertBackbone":
        raise UserError(f"{folder} is a preset of {name}; kbert reads only BertBackbone.")
    files = [WEIGHTS_FILE]
    fields = _fields(saved, folder / CONFIG_FILE)
    if (folder / TASK_FILE).is_file():
        task = read_json(folder / TASK_FILE)
        fields |= _task_fields(task, folder / TASK_FILE)
        files += [TASK_WEIGHTS_FILE] * (folder / TASK_WEIGHTS_FILE).is_file()
    with contextlib.ExitStack() as stack:
        sources, shapes = {}, {}  # name -> (tensors of a file, name in the file), shape
        for file in files:
            tensors = stack.enter_context(read_arrays(folder / file))
            for path, shape in tensors.shapes.items():
                if not path.startswith(("optimizer/", "preprocessor/")):
                    name = f"{file}/{path.replace(_OLD_LAYERS, 'layers/', 1)}"
                    sources[name], shapes[name] = (tensors, path), shape

        def read(name):
            tensors, path = sources[name]
            return tensors[path]

        if _MLM + "vars/0" in shapes:
            warnings.warn(_MLM_NOTE, stacklevel=6)  # the caller of from_pretrained
        fields |= kbert_fields(saved, folder / CONFIG_FILE)
        yield fields, Tensors(shapes, read), external_weights


def _fields(saved, path):
    (values,) = require_keys(saved, ["config"], path)
    fields = dict(zip(FIELDS.values(), require_keys(values, FIELDS, path), strict=True))
    fields["attention_probs_dropout_prob"] = fields["hidden_dropout_prob"]
    return fields | FIXED


def _task_fields(task, path):
    name, values = require_keys(task, ["class_name", "config"], path)
    name = "BertTextClassifier" if name == "BertClassifier" else name  # former name
    if name not in _TASKS.values():
        raise UserError(
            f"{path} is of the class {name}; kbert reads {' and '.join(_TASKS.values())}."
        )
    if name == "BertMaskedLM":
        return {}
    labels, rate, backbone = require_keys(values, ["num_classes", "dropout", "backbone"], path)
    activation = values.get("activation", "linear")
    if activation != "linear":
        raise UserError(
            f"{path} has the activation {activation!r}; kbert's classifier returns logits and "
            f"supports only 'linear'."
        )
    (encoder_rate,) = require_keys(require_keys(backbone, ["config"], path)[0], ["dropout"], path)
    return {"num_labels": labels, "classifier_dropout": None if rate == encoder_rate else rate}


def write(folder: pathlib.Path, config: BertConfig, tensors: Tensors, parts: set[str]) -> list[str]:
    """See `kbert.model.weights`."""
    if "bert/pooler" not in parts:
        raise UserError(
            "KerasHub's BertBackbone has a pooler, but this model has none. To add an untrained "
            "one: kbert.BertModel.from_pretrained(FOLDER).save_pretrained(TO, format='keras_hub')"
        )
    values = dataclasses.asdict(config)
    known = [*FIELDS.values()]
    if config.attention_probs_dropout_prob == config.hidden_dropout_prob:
        known.append("attention_probs_dropout_prob")
    extra = extra_fields(values, known, FIXED)
    backbone = _serialize(
        "BertBackbone",
        {keras_hub_name: values[kbert_name] for keras_hub_name, kbert_name in FIELDS.items()},
    )
    saved = backbone | ({"kbert": extra} if extra else {})
    atomic.write_json(folder / CONFIG_FILE, saved, indent=4)
    metadata = {"keras_version": keras.__version__, "tasks": []}
    atomic.write_json(folder / "metadata.json", metadata, indent=4)
    for stale in (TASK_FILE, TASK_WEIGHTS_FILE):  # left by a model saved here before
        (folder / stale).unlink(missing_ok=True)
    for part in parts & _TASKS.keys():
        settings = {"backbone": backbone, "preprocessor": None}
        if part == "sequence_classifier":
            settings |= {"num_classes": config.num_labels, "dropout": config.head_dropout_prob}
        atomic.write_json(folder / TASK_FILE, _serialize(_TASKS[part], settings), indent=4)
        _write_arrays(folder, TASK_WEIGHTS_FILE, tensors, _FRESH_OPTIMIZER)
    _write_arrays(folder, WEIGHTS_FILE, tensors)
    notes = differences(config, "KerasHub", FIXED)
    return notes + [_MLM_NOTE] * ("mlm" in parts)


def _serialize(name, config):
    return {
        "module": "keras_hub.models",
        "class_name": name,
        "config": config,
        "registered_name": f"keras_hub>{name}",
    }


def _write_arrays(folder, file, tensors, others=None):
    """Writes to `file` the tensors whose names start with the file's name, and `others`."""
    others = others or {}
    names = [name.removeprefix(f"{file}/") for name in tensors if name.startswith(f"{file}/")]

    def read(name):
        return others[name] if name in others else tensors[f"{file}/{name}"]

    write_arrays(folder / file, Tensors(dict.fromkeys([*names, *others]), read))
