"""Finds folders of weights, detects their formats, and reads their JSON files."""

import hashlib
import json
import os
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence

from kbert.errors import UserError
from kbert.fields import short_repr
from kbert.utils import foreign_weights

FORMATS = {
    "kbert": "config.json and weights.h5",
    "google": "bert_config.json and bert_model.ckpt.index",
    "hf": "config.json and model.safetensors",
    "keras_hub": "config.json and model.weights.h5",
}
# Files of weights in each format. A folder has at least one of them.
WEIGHTS_FILES = {
    "kbert": {"weights.h5"},
    "google": {"bert_model.ckpt.index"},
    "hf": {"model.safetensors", "model.safetensors.index.json"},
    "keras_hub": {"model.weights.h5"},
}
# Written by kbert.export into assets.extra of a SavedModel; kbert also reads such folders.
EXPORT_FILE = "kbert.json"
# The format of each file that only kbert reads, its member or attribute `format`, and what to do
# about another format. With a higher number, earlier versions of kbert ask for a newer one; later
# versions must read all lower numbers since version 0.1.0.
FILE_FORMATS = {
    "corpus.json": ("kbert corpus 1", "Prepare the text again."),
    "state.json": (3, "Use the version that wrote it, or another --output_dir."),
    "weights.h5": (1, "Use another copy of the folder."),
    "task.json": (1, "Fix or remove it."),
    EXPORT_FILE: (1, "Export the model again."),
}
_EXPORT_MEMBERS = ("method", "inputs", "max_seq_length", "padded", "token_outputs", "pad_id")
_EXPORT_MEMBERS += ("batch_timeout_ms", "limits", "weights", "files", "checksum")
_HF_HUB_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json")
_HF_HUB_FILES += ("model-*.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
_HF_HUB_FILES += ("model.weights.h5", "task.json", "task.weights.h5", "assets/tokenizer/*")
# Lists the modules of a sentence-transformers model, which have subfolders such as 1_Pooling.
MODULES_FILE = "modules.json"
_HF_HUB_FILES += (MODULES_FILE, "*sentence_*.json", "?_*/config.json", "?_*/*.safetensors")
_HF_HUB_FILES += ("?_*/vocab.txt", "?_*/tokenizer*.json", "*added_tokens.json")
_HF_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_folder(name: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a local folder, or of the local copy of a model on the Hugging Face hub.

    For a SavedModel that kbert exported, the result is its folder `assets.extra`, which describes
    the weights. For a sentence-transformers model, it is the folder of its Transformer module.

    If there is no local folder of this name, and the name could be a model on the Hugging Face hub,
    such as `bert-base-uncased` or `google-bert/bert-base-uncased`, `huggingface_hub` downloads the
    files that kbert reads or takes them from its cache. With HF_HUB_OFFLINE=1 only the cache is
    used.
    """
    path = pathlib.Path(name)
    if path.is_dir():
        extra = path / "assets.extra"
        if (extra / EXPORT_FILE).is_file():
            read_export(extra)
            return extra
        return _transformer_folder(path)
    if path.exists():
        raise UserError(f"{path} is a file; give the folder that contains it.")
    if isinstance(name, pathlib.Path) or not _HF_HUB_NAME.fullmatch(name):
        raise UserError(f"there is no folder {name}.")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"there is no folder {name}. If it is a model on the Hugging Face hub: "
            f"pip install huggingface_hub"
        ) from None
    try:
        path = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_HF_HUB_FILES))
    except Exception as error:  # from huggingface_hub, its HTTP library or the network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"there is no folder {name}, and no model of this name could be loaded from the "
            f"Hugging Face hub: {reason[:200]}"
        ) from error
    path = _transformer_folder(path)
    if not any(path.glob("model*.safetensors")) and not (path / "model.weights.h5").exists():
        raise UserError(
            f"the model {name} on the hub has no safetensors. If you trust its pickle, "
            f"{foreign_weights.conversion_advice(path, name)}"
        )
    return path


def read_modules(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Returns (class, subfolder) of each module of a sentence-transformers model; [] for others."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return []
    values = _read_json(path, list)
    fits = all(
        isinstance(value, dict)
        and isinstance(value.get("type"), str)
        and isinstance(value.get("path"), str)
        and re.fullmatch(r"(\w[\w.-]*)?", value["path"])
        for value in values
    )
    if not values or not fits:
        raise UserError(f"{path} must list modules with a type and a path in this folder.")
    return [(value["type"].split(".")[-1], value["path"]) for value in values]


def _transformer_folder(folder):
    """Returns the folder of the weights, which may be a module of sentence-transformers."""
    if (folder / "config.json").is_file():
        return folder
    modules = read_modules(folder)
    inner = folder / modules[0][1] if modules else folder
    return inner if inner.is_dir() else folder


def folder_format(folder: str | os.PathLike[str]) -> str:
    """Returns the format of a folder of weights: one of `FORMATS`, or "export".

    "export" is the folder `assets.extra` of a SavedModel, which contains `EXPORT_FILE`.
    """
    folder = pathlib.Path(folder)
    names = set(os.listdir(folder))
    if "bert_config.json" in names and any(name.endswith(".index") for name in names):
        return "google"  # whatever the checkpoint is called
    if EXPORT_FILE in names:
        return "export"
    for format, files in WEIGHTS_FILES.items():
        if names & files:
            return format
    if reason := foreign_weights.unsupported_reason(folder):
        raise UserError(reason)
    allowed = "; ".join(f"{files} ({name})" for name, files in FORMATS.items())
    listing = ", ".join(sorted(names)[:8]) or "nothing"
    raise UserError(f"{folder} contains no weights: found {listing}; kbert reads {allowed}.")


def check_not_pointer(path: str | os.PathLike[str]) -> None:
    """Raises UserError if a file is a Git LFS pointer instead of the actual file."""
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(23) == b"version https://git-lfs"
    except OSError:
        return  # reported by the reader of the file
    if is_pointer:
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself. Fetch the file in its folder: git "
            f"lfs install && git lfs pull, or download it again."
        )


def require_keys(
    values: object, names: Sequence[str], path: str | os.PathLike[str]
) -> list[object]:
    """Returns the named members of an object in a JSON file."""
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected a JSON object; got a value of type {type(values).__name__}."
        )
    for name in names:
        if name not in values:
            raise UserError(f"{path} lacks {name!r}.")
    return [values[name] for name in names]


def with_format(name: str, values: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """Returns the members of a file in `FILE_FORMATS`, preceded by its `format`."""
    return {"format": FILE_FORMATS[name][0], **values}


def check_format(path: str | os.PathLike[str], format: object) -> None:
    """Raises UserError if a file in `FILE_FORMATS` has another format than this version reads.

    Args:
        path: the file.
        format: its `format`; None, if it has none, means 1.
    """
    known, remedy = FILE_FORMATS[os.path.basename(path)]
    format = 1 if format is None and known == 1 else format
    if type(format) is not type(known) or format != known:
        kind, number = re.fullmatch(r"(.*?)([0-9]+)", str(known)).groups()
        match = re.fullmatch(f"{kind}([0-9]{{1,9}})", str(format))
        if type(format) is type(known) and match and int(match[1]) > int(number):
            raise UserError(
                f"{path} was written by a newer kbert (format {format!r}; this version reads "
                f"{known!r}). Install a newer kbert."
            )
        raise UserError(
            f"{path} has the format {short_repr(format)}; this version of kbert reads {known!r}. "
            f"{remedy}"
        )


def export_checksum(metadata: Mapping[str, object]) -> str:
    """Returns the hexadecimal SHA-256 of the metadata in `kbert.json`, without `checksum`."""
    rest = {name: value for name, value in metadata.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Returns the hexadecimal SHA-256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | os.PathLike[str]) -> dict[str, typing.Any]:
    """Returns the object in a JSON file."""
    return _read_json(path, dict)


def _read_json(path, kind):
    path = pathlib.Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        check_not_pointer(path)
        raise UserError(f"{path} is not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, kind):
        what = "object" if kind is dict else "list"
        raise UserError(
            f"{path} must contain a JSON {what}; it contains a {type(values).__name__}."
        )
    return values


def read_export(folder: str | os.PathLike[str]) -> dict[str, typing.Any]:
    """Returns the metadata in `kbert.json` of a folder `assets.extra`, after verifying its files.

    The weights are not verified here, because TensorFlow verifies its own checksums of them.
    """
    path = pathlib.Path(folder) / EXPORT_FILE
    metadata = read_json(path)
    check_format(path, metadata.get("format"))
    require_keys(metadata, _EXPORT_MEMBERS, path)
    if metadata["checksum"] != export_checksum(metadata):
        raise UserError(f"{path} is damaged: its checksum differs. Export the model again.")
    for name, expected in metadata["files"].items():
        file = path.parent.parent / name
        try:
            reason = sha256_of(file) != expected and "its checksum differs"
        except OSError as error:
            reason = error.strerror
        if reason:
            raise UserError(f"{file} is damaged: {reason}. Export the model again.")
    return metadata


def is_quantized(metadata: Mapping[str, typing.Any]) -> bool:
    """Returns whether the weights of an export are int8, given its metadata (`read_export`)."""
    return any(name and name.endswith("_scale") for name in metadata["weights"])
