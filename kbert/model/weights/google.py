"""The format of google-research/bert: `bert_config.json` and a TensorFlow 1 checkpoint.

TensorFlow 2 checkpoints of the Model Garden can also be read; see `model_garden`.

The weights have the variable names of google-research/bert's `modeling.py`, `run_pretraining.py`,
`run_classifier.py` and `run_squad.py`. google-research/bert always computes the activation "gelu"
with the tanh approximation, and LayerNorm with epsilon 1e-12. Settings that it lacks, such as
another epsilon or label names, are stored in `bert_config.json` under the key "kbert", which
google-research/bert ignores.

Requires TensorFlow, because the checkpoint is in TensorFlow's format.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Collection, Iterator

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights import model_garden
from kbert.model.weights.config_fields import differences, extra_fields, kbert_fields
from kbert.model.weights.tensors import (
    ExternalWeight,
    FolderContents,
    Tensors,
    check_size,
    map_weights,
)
from kbert.utils import atomic
from kbert.utils.formats import check_not_pointer, read_json, require_keys

CONFIG_FILE, CHECKPOINT = "bert_config.json", "bert_model.ckpt"

NAMES = {
    "bert/embeddings/word_embeddings": "bert/embeddings/word_embeddings",
    "bert/embeddings/position_embeddings": "bert/embeddings/position_embeddings",
    "bert/embeddings/token_type_embeddings": "bert/embeddings/token_type_embeddings",
    "bert/embeddings/layer_norm": "bert/embeddings/LayerNorm",
    "bert/encoder/layer_{i}/attention/query": "bert/encoder/layer_{i}/attention/self/query",
    "bert/encoder/layer_{i}/attention/key": "bert/encoder/layer_{i}/attention/self/key",
    "bert/encoder/layer_{i}/attention/value": "bert/encoder/layer_{i}/attention/self/value",
    "bert/encoder/layer_{i}/attention/output": "bert/encoder/layer_{i}/attention/output/dense",
    "bert/encoder/layer_{i}/attention_norm": "bert/encoder/layer_{i}/attention/output/LayerNorm",
    "bert/encoder/layer_{i}/intermediate": "bert/encoder/layer_{i}/intermediate/dense",
    "bert/encoder/layer_{i}/output": "bert/encoder/layer_{i}/output/dense",
    "bert/encoder/layer_{i}/output_norm": "bert/encoder/layer_{i}/output/LayerNorm",
    "bert/pooler/dense": "bert/pooler/dense",
    "mlm/transform": "cls/predictions/transform/dense",
    "mlm/layer_norm": "cls/predictions/transform/LayerNorm",
    "mlm/output_bias": "cls/predictions/output_bias",
    "nsp/classifier/kernel": "cls/seq_relationship/output_weights",
    "nsp/classifier/bias": "cls/seq_relationship/output_bias",
    "sequence_classifier/dense/kernel": "output_weights",
    "sequence_classifier/dense/bias": "output_bias",
    "span_classifier/dense/kernel": "cls/squad/output_weights",
    "span_classifier/dense/bias": "cls/squad/output_bias",
}
VARIABLES = {name: f"/{name}" for name in ("kernel", "bias", "gamma", "beta")} | {"embeddings": ""}


def external_weights(config: BertConfig, parts: Collection[str] = ()) -> dict[str, ExternalWeight]:
    """See `kbert.model.weights`."""
    transposed = {name for name, external in NAMES.items() if external.endswith("output_weights")}
    return map_weights(config, NAMES, VARIABLES, transposed.__contains__)


# Maximum size of a data file. TensorFlow holds all tensors of a file in memory when it writes it.
# BERT-base fits into one file, as Google published it.
SHARD_BYTES = 500_000_000
# The fields of `bert_config.json` that google-research/bert's model uses, except `hidden_act`.
FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("max_position_embeddings", "type_vocab_size", "initializer_range"),
)
# Hard-coded in google-research/bert.
FIXED: dict[str, str | float] = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-12}
# Names of the optimizer's variables.
_NOT_WEIGHTS = re.compile(
    r"(.*/)?(adam_[mv]|lamb_[mv]|Adam(_1)?|global_step|beta[12]_power|loss_scale|good_steps)"
)
# Errors that TensorFlow's reader raises for damaged index files, besides tf.errors.OpError.
_DAMAGED = (IndexError, RuntimeError, ValueError, TypeError, KeyError)
# Part of a tensor name -> the architecture that has such names.
_OTHER_ARCHITECTURES = {"electra/": "ELECTRA", "/group_0/": "ALBERT"}


@contextlib.contextmanager
def open_folder(folder: pathlib.Path, parts: Collection[str] = ()) -> Iterator[FolderContents]:
    """See `kbert.model.weights`."""
    prefix = _checkpoint(folder)
    tensors = read_checkpoint(prefix, lambda name: not _NOT_WEIGHTS.fullmatch(name))
    for mark, architecture in _OTHER_ARCHITECTURES.items():
        if any(mark in f"/{name}" for name in tensors):
            raise UserError(f"{prefix} is a checkpoint of {architecture}; kbert reads only BERT.")
    if any(name.endswith(model_garden.SUFFIX) for name in tensors):
        tensors = model_garden.rename_tensors(tensors, prefix)
    yield _fields(folder, tensors.shapes), tensors, external_weights


def read_checkpoint(prefix: pathlib.Path, is_wanted: Callable[[str], bool]) -> Tensors:
    """Returns the float tensors of a TensorFlow checkpoint for which `is_wanted(name)` is true.

    `prefix` is its path without suffixes such as ".index". Raises UserError if the checkpoint
    cannot be read, or its tensors are larger than its files.
    """
    import tensorflow as tf

    for path in prefix.parent.glob(f"{prefix.name}.*"):
        check_not_pointer(path)
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        dtypes = reader.get_variable_to_dtype_map()
    except (*_DAMAGED, tf.errors.OpError) as error:
        raise UserError(f"cannot read the checkpoint {prefix}: {_first_line(error)}.") from error
    shapes = {
        name: tuple(shape)
        for name, shape in shapes.items()
        if dtypes[name].is_floating and is_wanted(name)
    }
    claimed = sum(math.prod(shape) * dtypes[name].size for name, shape in shapes.items())
    check_size(prefix, prefix.parent.glob(f"{prefix.name}.data-*"), claimed)

    def read(name):
        try:
            return reader.get_tensor(name)
        except (*_DAMAGED, tf.errors.OpError) as error:
            raise UserError(f"cannot read {name} of {prefix}: {_first_line(error)}.") from error

    return Tensors(shapes, read)


def _checkpoint(folder):
    """Returns the prefix of the checkpoint in a folder: `bert_model.ckpt`, or else the only one."""
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if folder / CHECKPOINT in prefixes:
        return folder / CHECKPOINT
    if len(prefixes) > 1:
        raise UserError(
            f"{folder} has {len(prefixes)} checkpoints, none named {CHECKPOINT}: "
            f"{', '.join(path.name for path in prefixes)}. Copy one of them, with "
            f"{CONFIG_FILE} and vocab.txt, into a separate folder."
        )
    return prefixes[0]


def _fields(folder, shapes):
    """Returns fields of BertConfig, including the ones hard-coded in google-research/bert."""
    path = folder / CONFIG_FILE
    values = read_json(path)
    act = values.get("hidden_act", "gelu")
    if act not in ("gelu", "gelu_new"):
        raise UserError(f"{path} has hidden_act {act!r}; kbert supports 'gelu' and 'gelu_new'.")
    require_keys(values, FIELDS[:5], path)
    fields = {name: values[name] for name in FIELDS if name in values} | FIXED
    if "output_weights" in shapes:
        fields["num_labels"] = math.prod(shapes["output_weights"][:1])
    return fields | kbert_fields(values, path)


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:400]


def write(folder: pathlib.Path, config: BertConfig, tensors: Tensors, parts: set[str]) -> list[str]:
    """See `kbert.model.weights`."""
    import tensorflow as tf

    values = dataclasses.asdict(config)
    extra = extra_fields(values, FIELDS, FIXED)
    values = {name: values[name] for name in FIELDS} | {"hidden_act": "gelu"}
    atomic.write_json(folder / CONFIG_FILE, values | ({"kbert": extra} if extra else {}))
    shards = list(_shards(tensors))
    prefixes = [str(folder / f"{CHECKPOINT}.{i}") for i in range(len(shards))]
    try:
        for prefix, names in zip(prefixes, shards, strict=True):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tf.constant(tensors[name]) for name in names],
            )
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=prefixes, destination_prefix=str(folder / CHECKPOINT)
        )
    except tf.errors.OpError as error:
        reason = f"cannot write {folder / CHECKPOINT}: {_first_line(error)}."
        raise UserError(reason) from error
    return differences(config, "google-research/bert", FIXED)


def _shards(tensors):
    """Yields lists of names of tensors: at most SHARD_BYTES per list, or a single larger tensor."""
    names, size = [], 0
    for name, shape in sorted(tensors.shapes.items()):
        bytes_of_it = 4 * math.prod(shape)
        if names and size + bytes_of_it > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes_of_it
    yield names
