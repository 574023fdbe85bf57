"""Targets: folders of weights in every format, and what lies beside an export."""

import functools
import json
import math

import numpy as np
import tensorflow as tf

from kbert.config import BertConfig
from kbert.model.weights import Tensors, open_weights, write_weights
from kbert.model.weights.tensors import part_of, weight_shapes
from kbert.tokenizer.vocab import write_vocab
from kbert.utils.formats import (
    EXPORT_FILE,
    export_checksum,
    find_folder,
    read_export,
    sha256_of,
)

from .data import VOCAB, as_json, every, made
from .harness import reads_files

SMALL = BertConfig(
    vocab_size=len(VOCAB),
    hidden_size=2,
    num_hidden_layers=1,
    num_attention_heads=1,
    intermediate_size=3,
    max_position_embeddings=4,
    label_names=("no", "yes"),
)
PARTS = ("bert/embeddings", "bert/encoder", "bert/pooler", "sequence_classifier")
EXPORT = {
    **{"method": "classify", "inputs": ["text"], "outputs": ["labels", "scores"]},
    **{"max_seq_length": 4, "takes_pairs": False, "padded": {"scores": 0.0, "labels": ""}},
    **{"token_outputs": [], "batch_timeout_ms": 0, "pad_id": 0},
    "limits": {"max_text_tokens": 9, "max_windows": 2, "max_choices": 3},
}


def _weights():
    shapes = {n: s for n, s in weight_shapes(SMALL).items() if part_of(n) in PARTS}

    def read(name):
        return np.arange(math.prod(shapes[name]), dtype=np.float32).reshape(shapes[name])

    return Tensors(shapes, read)


def _writes(format):
    return made(lambda folder: write_weights(folder, format, SMALL, _weights()))


def _read_all(folder):
    """Opens a folder of weights, and reads each as from_pretrained does."""
    with open_weights(folder) as (config, weights):
        for name in weights:
            assert weights[name].shape == weights.shapes[name]
            assert weights[name].dtype == np.float32
    assert isinstance(config, BertConfig)


@reads_files(_writes("kbert"))
def weights_kbert(folder):
    _read_all(folder)


@reads_files(_writes("google"))
def weights_google(folder):
    _read_all(folder)


@reads_files(_writes("hf"))
def weights_hf(folder):
    _read_all(folder)


@functools.cache
def _sharded():
    """HF's weights in a file that an index names."""
    files = _writes("hf")()
    (content,) = files["model.safetensors"]
    size = int.from_bytes(content[:8], "little")
    names = [name for name in json.loads(content[8 : 8 + size]) if name != "__metadata__"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")}
    return {
        "config.json": files["config.json"],
        "model.safetensors.index.json": [as_json(index)],
        "one.safetensors": [content],
    }


@reads_files(_sharded)
def weights_hf_sharded(folder):
    _read_all(folder)


@reads_files(_writes("keras_hub"))
def weights_keras_hub(folder):
    _read_all(folder)


def _write_export(folder):
    """What `kbert.export` leaves but for the graph."""
    extra, weights = folder / "assets.extra", _weights()
    extra.mkdir()
    SMALL.save(extra / "config.json")
    write_vocab(VOCAB, extra / "vocab.txt")
    files = {f"assets.extra/{path.name}": sha256_of(path) for path in sorted(extra.iterdir())}
    metadata = EXPORT | {"weights": list(weights), "files": files}
    metadata["checksum"] = export_checksum(metadata)
    (extra / EXPORT_FILE).write_bytes(as_json(metadata))
    (folder / "variables").mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(folder / "variables" / "variables"),
        tensor_names=[f"variables/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i in range(len(weights))],
        shape_and_slices=[""] * len(weights),
        tensors=[tf.constant(weights[name]) for name in weights],
    )


@reads_files(made(_write_export))
def weights_export(folder):
    every((lambda: _read_all(find_folder(folder)), lambda: _use_export(folder / "assets.extra")))


def _use_export(extra):
    """What the server does with `kbert.json`."""
    metadata = read_export(extra)
    assert np.ceil(np.arange(3) / metadata["max_seq_length"]).sum() >= 0
    for fill in metadata["padded"].values():
        np.full(3, fill.encode() if isinstance(fill, str) else fill)
    BertConfig.from_file(extra / "config.json")
