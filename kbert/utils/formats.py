"""Folders of weights: where they are, and in whose format."""

import hashlib
import json
import os
import pathlib
import re
import shlex

from kbert.config import is_text
from kbert.errors import UserError

FORMATS = {
    "kbert": "config.json and weights.h5",
    "google": "bert_config.json and bert_model.ckpt.index",
    "hf": "config.json and model.safetensors",
    "keras_hub": "config.json and model.weights.h5",
}
# The files of which a folder of the format has one at least.
WEIGHTS_FILES = {
    "kbert": {"weights.h5"},
    "google": {"bert_model.ckpt.index"},
    "hf": {"model.safetensors", "model.safetensors.index.json"},
    "keras_hub": {"model.weights.h5"},
}
# What kbert.export writes into assets.extra beside a SavedModel; such folders are read, too.
EXPORT_FILE = "kbert.json"
_HF_HUB_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json")
_HF_HUB_FILES += ("model-*.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
_HF_HUB_FILES += ("model.weights.h5", "task.json", "task.weights.h5", "assets/tokenizer/*")
_HF_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PICKLES = ("pytorch_model*.bin*", "*.pt", "*.pth", "*.pkl")
_OTHERS = {
    "tf_model.h5": "weights of HF's TensorFlow models, which no longer exist",
    "flax_model.msgpack": "weights of HF's Flax models, which no longer exist",
    "saved_model.pb": "a SavedModel that kbert.export has not written",
    "model.onnx": "an ONNX model, which is made for serving",
    "model.xml": "an OpenVINO model, which is made for serving",
    "model.tflite": "a LiteRT model, which is made for serving",
}


def find_folder(name):
    """Path of a folder, or of the local copy of a model on the Hugging Face hub.

    Of an export for serving, that is the folder in it which says where its weights are.

    A name that is no folder here and could be one of the hub, such as `bert-base-uncased` or
    `google-bert/bert-base-uncased`, is looked up there if `huggingface_hub` is installed: only the
    files that kbert reads, from the local cache where it has them, and from it alone with
    HF_HUB_OFFLINE=1.

    Raises:
        UserError: there is no such folder, and no such model on the hub; a damaged export.
    """
    path = pathlib.Path(name)
    if path.is_dir():
        extra = path / "assets.extra"
        if (extra / EXPORT_FILE).is_file():
            read_export(extra)
            return extra
        return path
    if path.exists():
        raise UserError(f"{path} is a file; name the folder that it is in.")
    if isinstance(name, pathlib.Path) or not _HF_HUB_NAME.fullmatch(name):
        raise UserError(f"there is no folder {name}.")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"there is no folder {name}. If it is a model of the Hugging Face hub: "
            f"pip install huggingface_hub"
        ) from None
    try:
        path = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_HF_HUB_FILES))
    except Exception as error:  # of the hub, of its HTTP library, of the network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"there is no folder {name}, and the Hugging Face hub gave no model of this name: "
            f"{reason[:200]}"
        ) from error
    if not any(path.glob("model*.safetensors")) and not (path / "model.weights.h5").exists():
        raise UserError(
            f"the model {name} of the hub has no safetensors. If you trust its pickle, "
            f"{_way_out(path, name)}"
        )
    return path


def folder_format(folder):
    """The format of a folder of weights, one of `FORMATS`, or "export": see `EXPORT_FILE`.

    Raises:
        UserError: it holds none of them; what it holds instead is named, and what to do about it.
    """
    folder = pathlib.Path(folder)
    names = set(os.listdir(folder))
    if "bert_config.json" in names and any(name.endswith(".index") for name in names):
        return "google"  # whatever the name of the checkpoint
    if EXPORT_FILE in names:
        return "export"
    for format, files in WEIGHTS_FILES.items():
        if names & files:
            return format
    for pattern in _PICKLES:
        for path in folder.glob(pattern):
            raise UserError(
                f"{path} is a pickle, which may run any code when it is read; kbert reads none. If "
                f"you trust it, {_way_out(folder, folder)}"
            )
    allowed = "; ".join(f"{files} ({name})" for name, files in FORMATS.items())
    for name, what in _OTHERS.items():
        if name in names:
            raise UserError(f"{folder / name} is {what}; kbert reads {allowed}.")
    listing = ", ".join(sorted(names)[:8]) or "nothing"
    raise UserError(f"{folder} holds no weights: found {listing}; kbert reads {allowed}.")


def _way_out(folder, name):
    """The command that makes safetensors of a pickle, of the class that `config.json` names."""
    try:
        architecture = str(read_json(folder / "config.json")["architectures"][0])
    except (UserError, KeyError, TypeError, IndexError):
        architecture = ""
    if not re.fullmatch(r"Bert\w{1,40}", architecture, re.ASCII):
        architecture = "BertForPreTraining"
    target = str(name).rstrip("/").split("/")[-1] + "-safe"
    code = (
        f"from transformers import {architecture} as M; "
        f"M.from_pretrained({str(name)!r}).save_pretrained({target!r})"
    )
    return f"make safetensors of it: python -c {shlex.quote(code)}"


def members(values, names, path):
    """The named members of an object of a JSON file. Raises UserError where one is missing."""
    if not isinstance(values, dict):
        raise UserError(f"{path} has {type(values).__name__} where an object should be.")
    for name in names:
        if name not in values:
            raise UserError(f"{path} lacks {name!r}.")
    return [values[name] for name in names]


def export_checksum(metadata):
    """SHA-256 of what `kbert.json` says besides."""
    rest = {name: value for name, value in metadata.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of(path):
    """Hexadecimal SHA-256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path):
    """The object in a JSON file. Raises UserError if it cannot be read, or holds something else."""
    path = pathlib.Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object; it holds a {type(values).__name__}.")
    return values


def read_export(folder):
    """What `kbert.json` says of an export, a dict, if the export's files are what was written.

    The weights have checksums of TensorFlow's own.

    Args:
        folder: `assets.extra` of a SavedModel.

    Raises:
        UserError: a file is missing, damaged, or not what `kbert.export` writes.
    """
    path = pathlib.Path(folder) / EXPORT_FILE
    metadata = read_json(path)
    for name, (fits, what) in _OF_EXPORT.items():
        (value,) = members(metadata, [name], path)
        if not fits(value):
            raise UserError(f"{path} is damaged: {name} must be {what}. Export the model again.")
    if metadata["checksum"] != export_checksum(metadata):
        raise UserError(f"{path} is damaged: its checksum differs. Export the model again.")
    for name, expected in metadata["files"].items():
        file = path.parent.parent / name
        try:
            reason = sha256_of(file) != expected and "its checksum differs"
        except OSError as error:
            reason = error.strerror
        except ValueError as error:  # a name that no file can have
            reason = error
        if reason:
            raise UserError(f"{file} is damaged: {reason}. Export the model again.")
    return metadata


def is_quantized(metadata):
    """Whether the weights of an export are int8. metadata: dict, as `read_export` returns it."""
    return any(name and name.endswith("_scale") for name in metadata["weights"])


def _is_list(values, fits=is_text):
    return isinstance(values, list) and all(map(fits, values))


_OF_EXPORT = {  # what those who read it take for granted
    "method": (is_text, "a text"),
    "inputs": (_is_list, "a list of texts"),
    "max_seq_length": (lambda x: type(x) is int and 0 < x < 2**31, "a number above 0"),
    "padded": (
        lambda x: (
            isinstance(x, dict)
            and _is_list([*x.values()], lambda y: is_text(y) or isinstance(y, int | float))
        ),
        "an object of texts and numbers",
    ),
    "weights": (lambda x: _is_list(x, lambda y: y is None or is_text(y)), "a list of names"),
    "files": (lambda x: isinstance(x, dict) and _is_list([*x.values()]), "an object of texts"),
    "checksum": (is_text, "a text"),
}
