"""The format of HF transformers: `config.json` and `model.safetensors`, single or sharded.

The weights have the names of HF's `modeling_bert.py`, for classes with and without a head. Files of
older versions can also be read: names without the prefix "bert.", names with "gamma" and "beta",
stored buffers, and duplicates of tied matrices. float16, bfloat16 and float64 are converted to
float32; only float64 is rounded.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import re
import struct
import warnings
from collections.abc import Collection, Iterator

import ml_dtypes  # noqa: F401 - registers bfloat16 in numpy
import numpy as np
import safetensors

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.fields import is_text
from kbert.model.weights import google, sentence_transformers
from kbert.model.weights.tensors import (
    ExternalWeight,
    FolderContents,
    Tensors,
    abbreviate_names,
    map_weights,
)
from kbert.utils import atomic
from kbert.utils.formats import check_not_pointer, read_json, require_keys

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Outside the heads, HF uses the names of google-research/bert, with dots instead of slashes:
# "bert.encoder.layer.3.attention.self.query".
NAMES = {
    name: google_name.replace("layer_{i}", "layer.{i}").replace("/", ".")
    for name, google_name in google.NAMES.items()
    if not google_name.endswith(("output_weights", "output_bias"))
}
NAMES |= {
    "embedding/dense": f"{sentence_transformers.DENSE}.linear",
    "mlm/output_bias": "cls.predictions.bias",
    "mlm/decoder": "cls.predictions.decoder.weight",
    "nsp/classifier": "cls.seq_relationship",
    "span_classifier/dense": "qa_outputs",
}
VARIABLES = {"kernel": ".weight", "embeddings": ".weight", "gamma": ".weight"}
VARIABLES |= {"bias": ".bias", "beta": ".bias"}

# HF class -> its heads. Three of the classes name their head "classifier".
CLASSES: dict[str, tuple[str, ...]] = {
    "BertForPreTraining": ("mlm", "nsp"),
    "BertForMaskedLM": ("mlm",),
    "BertForNextSentencePrediction": ("nsp",),
    "BertForSequenceClassification": ("sequence_classifier",),
    "BertForTokenClassification": ("token_classifier",),
    "BertForQuestionAnswering": ("span_classifier",),
    "BertForMultipleChoice": ("choice_classifier",),
    "BertModel": (),
}
UNPOOLED = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")
CLASSIFIERS = ("sequence_classifier", "token_classifier", "choice_classifier")

# HF's hidden_act -> kbert's.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
}
# HF's settings of features that kbert does not support -> the value that disables the feature.
_UNUSED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_BUFFERS = re.compile(r"bert\.embeddings\.(position_ids|token_type_ids)")
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_CURRENT_PREFIXES = ("bert.", "cls.", "classifier.", "qa_outputs.")
_DENSE = f"{sentence_transformers.DENSE}."


def external_weights(config: BertConfig, parts: Collection[str] = ()) -> dict[str, ExternalWeight]:
    """See `kbert.model.weights`.

    HF's "classifier" is the first of `CLASSIFIERS` that is in `parts`, or else the sequence
    classifier.
    """
    classifier = next((part for part in CLASSIFIERS if part in parts), CLASSIFIERS[0])
    names = NAMES | {f"{classifier}/dense": "classifier"}
    return map_weights(config, names, VARIABLES, transposed=lambda name: name.endswith("/kernel"))


@contextlib.contextmanager
def open_folder(folder: pathlib.Path, parts: Collection[str] = ()) -> Iterator[FolderContents]:
    """See `kbert.model.weights`.

    HF's "classifier" is the head of the model class that the config names; else a classifier in
    `parts`; else the sequence classifier, or the token classifier if there is no pooler.
    """
    values = read_json(folder / CONFIG_FILE)
    fields = _fields(values, folder / CONFIG_FILE)
    named_parts = _parts(values, folder / CONFIG_FILE)
    with contextlib.ExitStack() as stack:
        sources = _open_files(_files(folder), stack, folder)
        shapes = {plain: _shape(*source, folder) for plain, source in sources.items()}
        fields["embedding"], dense = sentence_transformers.read(folder, values)
        shapes |= {name: array.shape for name, array in dense.items()}

        def read(plain):
            if plain in dense:
                return np.asarray(dense[plain], np.float32)
            file, name = sources[plain]
            return np.asarray(file.get_tensor(name), np.float32)

        tensors = Tensors(shapes, read)
        _remove_duplicates(sources, tensors, fields["tie_word_embeddings"], folder)
        if not named_parts and not set(CLASSIFIERS) & set(parts):
            # Of HF's classes whose head is "classifier", only token classification has no pooler.
            pooled = any(name.startswith("bert.pooler.") for name in shapes)
            parts = ("sequence_classifier" if pooled else "token_classifier",)
        yield fields, tensors, functools.partial(external_weights, parts=named_parts or parts)


def _open_files(paths, stack, folder):
    """Opens safetensors files; returns a dict of HF's current name -> (file, name in the file)."""
    names = {}  # name -> path, open file
    for path in paths:
        check_not_pointer(path)
        try:
            file = stack.enter_context(safetensors.safe_open(path, "np", backend="pread"))
        except (OSError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot read {path}: {reason}. Copy it again.") from error
        names |= {name: (path, file) for name in file.keys()}  # noqa: SIM118 - not a dict
    prefix, sources = _common_prefix(names, folder), {}
    for name, (path, file) in names.items():
        plain = _current_name(name.removeprefix(prefix))
        if plain in sources:
            raise UserError(f"{path} has {plain} twice, once as {name}.")
        if not _BUFFERS.fullmatch(plain):
            sources[plain] = file, name
    return sources


def _common_prefix(names, folder):
    """Returns the prefix that PyTorch wrappers, such as DataParallel, added to every name."""
    prefix = ""
    while wrapper := next(
        (w for w in _WRAPPERS if any(n.startswith(prefix + w) for n in names)), ""
    ):
        others = [name for name in names if not name.startswith(prefix + wrapper)]
        if others:
            raise UserError(
                f"{folder}: some names of tensors begin with {prefix + wrapper!r}, others do not: "
                f"{abbreviate_names(others)}. Save the model without its wrapper, such as "
                f"model.module."
            )
        prefix += wrapper
    return prefix


def _parts(values, path):
    """Returns the heads of the first class in the config that is in `CLASSES`, or ()."""
    names = values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: architectures must be a list of names; got {names!r}.")
    if names and "model_type" not in values and not names[0].startswith("Bert"):
        raise UserError(f"{path} has the architecture {names[0]}; kbert supports only BERT.")
    return next((CLASSES[name] for name in names if name in CLASSES), ())


def _files(folder):
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in weight_map.values()
    ):
        raise UserError(f"{folder / INDEX_FILE}: weight_map must name files of this folder.")
    return [folder / name for name in sorted(set(weight_map.values()))]


def _current_name(name):
    """Converts a tensor name of any version of HF transformers to the current name."""
    if not name.startswith(_CURRENT_PREFIXES):
        name = f"bert.{name}"
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _shape(file, name, folder):
    part = file.get_slice(name)
    if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
        raise UserError(
            f"{folder}: {name} has the dtype {part.get_dtype()}; kbert reads F32, F16, BF16 and "
            f"F64, not quantized weights. Use the unquantized model."
        )
    return tuple(part.get_shape())


def _remove_duplicates(sources, tensors, tied, folder):
    """Removes second names of the same array from `sources` and from the shapes of `tensors`."""
    # A tied decoder may be stored in addition to the word embeddings, or instead of them. The MLM
    # bias has two names; if the decoder is untied, HF uses the value of DECODER_BIAS.
    duplicates = {DECODER_BIAS: BIAS} | ({DECODER: WORDS} if tied else {})
    for other, name in duplicates.items():
        if other not in sources:
            continue
        if name in sources and (tied or other != DECODER_BIAS):
            same = tensors.shapes[name] == tensors.shapes[other]
            if not same or not np.array_equal(tensors[name], tensors[other]):
                raise UserError(
                    f"{folder}: {other} differs from {name}, but config.json ties them. If the "
                    f'model is not tied, set "tie_word_embeddings": false there.'
                )
        sources[name] = sources.pop(other)
        tensors.shapes[name] = tensors.shapes.pop(other)


def _fields(values, path):
    """Returns the fields of BertConfig from HF's `config.json`."""
    model_type = values.get("model_type", "bert")
    if model_type != "bert":
        raise UserError(
            f"{path} has model_type {model_type!r}; kbert supports only 'bert'. Choose "
            f"a BERT, or use this model with HF transformers."
        )
    for name, unused in _UNUSED.items():
        if values.get(name, unused) not in (unused, None):
            hint = " Use the unquantized model." if "quantization" in name else ""
            text = f"{path} has {name} {values[name]!r}; kbert supports only {unused!r}.{hint}"
            raise UserError(text)
    act = values.get("hidden_act", "gelu")
    if act not in list(ACTIVATIONS):
        raise UserError(f"{path} has hidden_act {act!r}; kbert supports {', '.join(ACTIVATIONS)}.")
    known = {field.name for field in dataclasses.fields(BertConfig)} - {"embedding"}
    fields = {name: value for name, value in values.items() if name in known}
    fields |= {"hidden_act": ACTIVATIONS[act]}
    fields.setdefault("tie_word_embeddings", True)
    return fields | _labels(values.get("id2label") or {}, path)


def _labels(id2label, path):
    """Returns `num_labels` and `label_names` as in HF's `id2label`; warns if it is inconsistent."""
    require_keys(id2label, (), path)
    count = len(id2label)
    if not count:
        return {}
    names = [str(id2label.get(str(i))) for i in range(count)]
    if names == _default_names(count):
        return {"num_labels": count}
    numbered = {str(i) for i in range(count)} == id2label.keys()
    if not numbered or len(set(names)) < count or not all(map(is_text, names)):
        message = f"{path}: id2label does not give each label its own name; its names are ignored."
        warnings.warn(message, stacklevel=8)  # the caller of from_pretrained
        names = None
    return {"num_labels": count, "label_names": names}


def _default_names(count):
    return [f"LABEL_{i}" for i in range(count)]


def write(folder: pathlib.Path, config: BertConfig, tensors: Tensors, parts: set[str]) -> list[str]:
    """Writes the config and the weights; returns notes on differences from HF's model.

    The pooler is omitted if the HF class has none. If the config has `embedding`, also writes the
    files of sentence-transformers.
    """
    values = dataclasses.asdict(config)
    for name in ("num_labels", "attention_heads_per_layer", "embedding"):
        del values[name]  # HF computes num_labels from id2label and does not have the others
    names = values.pop("label_names") or _default_names(config.num_labels)
    if "span_classifier" in parts:
        names = _default_names(2)  # HF treats start and end as labels
    architecture = next(name for name, heads in CLASSES.items() if set(heads) <= parts)
    notes, shapes = [], dict(tensors.shapes)
    if architecture in UNPOOLED and "bert/pooler" in parts:
        shapes = {name: shape for name, shape in shapes.items() if ".pooler." not in name}
        notes = [f"HF's {architecture} has no pooler, so the model's pooler is omitted."]
    elif architecture == "BertModel" and "bert/pooler" not in parts:
        notes = [
            "HF's BertModel has a pooler, but this model has none, so HF initializes it randomly."
        ]
    values |= {
        "architectures": [architecture],
        "model_type": "bert",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "position_embedding_type": "absolute",
        "dtype": "float32",
    }
    atomic.write_json(folder / CONFIG_FILE, values, ensure_ascii=False)
    if DECODER in shapes:  # untied: HF stores the bias twice
        shapes[DECODER_BIAS] = shapes[BIAS]
    notes += _write_embedding(folder, config, tensors)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(_DENSE)}
    read = tensors.__getitem__
    twice = Tensors(shapes, lambda name: read(BIAS if name == DECODER_BIAS else name))
    _write_safetensors(folder / WEIGHTS_FILE, twice)
    return notes


def _write_embedding(folder, config, tensors):
    """Writes the files of sentence-transformers; returns notes."""
    names = [name for name in tensors if name.startswith(_DENSE)]
    if config.embedding_settings.dense_size and not names:
        sentence_transformers.write(folder, dataclasses.replace(config, embedding=None))
        return ["this model lacks the dense layer of its embeddings, so modules.json is omitted."]
    sentence_transformers.write(folder, config)
    if names:
        shapes = {name.removeprefix(_DENSE): tensors.shapes[name] for name in names}
        dense = Tensors(shapes, lambda name: tensors[_DENSE + name])
        _write_safetensors(folder / sentence_transformers.DENSE / WEIGHTS_FILE, dense)
    return []


def _write_safetensors(path, tensors):
    """Writes a safetensors file one tensor at a time, which `safetensors.save_file` cannot do."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in sorted(tensors.shapes.items()):
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors.shapes):
            file.write(np.ascontiguousarray(tensors[name], "<f4").data)
