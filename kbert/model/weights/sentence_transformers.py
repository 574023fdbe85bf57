"""The files of sentence-transformers: they define how the model of an HF folder embeds texts.

`modules.json` lists the modules and their folders: a Transformer, whose folder is an HF folder,
then Pooling, and optionally Dense and Normalize.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from kbert.config import POOLINGS, BertConfig
from kbert.errors import UserError
from kbert.utils import atomic
from kbert.utils.formats import (
    MODULES_FILE,
    check_not_pointer,
    read_json,
    read_modules,
    require_keys,
)

DENSE = "2_Dense"  # prefix of tensor names, even if the folder has another name
_SETTINGS_FILE, _MODEL_FILE = "sentence_bert_config.json", "config_sentence_transformers.json"
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_FLAGS = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean"}
_FLAGS |= {name: name for name in ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")}
_ACTIVATIONS = {"Tanh": "tanh", "Identity": "linear"}
_CLASSES = {"tanh": "torch.nn.modules.activation.Tanh"}
_CLASSES |= {"linear": "torch.nn.modules.linear.Identity"}


def read(
    folder: pathlib.Path, config: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Returns the embedding settings of an HF folder, and the tensors of its dense layer.

    The settings are fields of EmbeddingConfig, or None if the folder is not part of a model that
    embeds texts. Without a dense layer, the tensors are {}.

    Args:
        folder: folder of the Transformer.
        config: contents of its `config.json`.

    Raises:
        UserError: the model has a module or a setting that kbert does not support, or a file cannot
            be read.
    """
    for root in (folder, folder.absolute().parent):
        modules = read_modules(root)
        if modules and os.path.realpath(root / modules[0][1]) == os.path.realpath(folder):
            break
    else:
        return None, {}
    model = _read_if_exists(root / _MODEL_FILE)
    if model.get("model_type") == "CrossEncoder":
        return None, {}
    paths = _config_paths(root, modules)
    settings = {"pooling": _pooling(paths["Pooling"], model), "normalize": "Normalize" in paths}
    settings |= _text_settings(folder, config, model)
    if read_json(paths["Pooling"]).get("include_prompt") is False:
        settings["prompts"] = None  # kbert pools over all tokens
    if "Normalize" in paths:
        _check_input(_read_if_exists(paths["Normalize"]), paths["Normalize"])
    if "Dense" not in paths:
        return settings, {}
    settings |= _dense(read_json(paths["Dense"]), paths["Dense"])
    return settings, _tensors(paths["Dense"].parent)


def _read_if_exists(path):
    return read_json(path) if path.is_file() else {}


def _config_paths(root, modules):
    """Returns a dict of module name -> path of its `config.json`."""
    kinds = [kind for kind, _ in modules if kind != "Dropout"]  # only used in training
    if kinds[:2] != [*_MODULES[:2]] or kinds != [kind for kind in _MODULES if kind in kinds]:
        raise UserError(
            f"{root / MODULES_FILE} has the modules {', '.join(kinds)}; kbert supports Transformer "
            f"and Pooling, followed by at most one Dense and one Normalize, in this order. To read "
            f"the encoder alone, copy the folder without {MODULES_FILE}."
        )
    return {kind: root / path / "config.json" for kind, path in modules}


def _pooling(path, model):
    values = read_json(path)
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if values.get(f"pooling_mode_{flag}")]
        modes = modes or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"{path} has the pooling mode {modes}; kbert supports one of {', '.join(POOLINGS)}. To "
            f"read the encoder alone, copy the folder without {MODULES_FILE}."
        )
    if values.get("include_prompt") is False and _prompt(model):
        raise UserError(
            f"{path} has include_prompt false, and the model has the default prompt "
            f"{_prompt(model)!r}; kbert pools over all tokens. Remove default_prompt_name from "
            f"{_MODEL_FILE} to embed without a prompt."
        )
    return modes[0]


def _prompt(model):
    prompts, name = model.get("prompts") or {}, model.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(name, str) or name not in prompts:
        raise UserError(
            f"{_MODEL_FILE} has the default prompt {name!r}, but no prompt of this name."
        )
    return prompts[name] or ""


def _named_prompts(model):
    prompts = model.get("prompts") or None
    if not isinstance(prompts, dict):
        return prompts  # rejected by EmbeddingConfig, unless it is None
    named = {name: text for name, text in prompts.items() if text is not None}
    return None if named in ({}, {"default": _prompt(model)}) else named  # see `write`


def _text_settings(folder, config, model):
    """Returns fields of EmbeddingConfig: the maximum length, the prompts and the similarity."""
    length = transformer_settings(folder).get("max_seq_length")
    if length is None:
        length = _read_if_exists(folder / "tokenizer_config.json").get("model_max_length")
    most = config.get("max_position_embeddings")
    lengths = [value for value in (length, most) if isinstance(value, int | float)]
    similarity = model.get("similarity_fn_name") or "cosine"
    return {
        "max_seq_length": int(min(lengths)) if lengths else None,
        "prompt": _prompt(model),
        "prompts": _named_prompts(model),
        "similarity": "dot" if similarity == "dot_score" else similarity,
    }


def transformer_settings(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of `sentence_bert_config.json`, or {} if there is no such file."""
    return _read_if_exists(folder / _SETTINGS_FILE)


def _check_input(values, path):
    for key in ("module_input_name", "module_output_name"):
        name = values.get(key) or "sentence_embedding"
        if name != "sentence_embedding":
            raise UserError(
                f"{path} has {key} {name!r}; kbert supports only 'sentence_embedding', the pooled "
                f"vector."
            )


def _dense(values, path):
    _check_input(values, path)
    size, name = require_keys(values, ["out_features"], path)[0], values.get("activation_function")
    name = str(name or "Tanh").split(".")[-1]
    if name not in _ACTIVATIONS or values.get("use_residual"):
        what = "use_residual true" if name in _ACTIVATIONS else f"the activation {name}"
        raise UserError(
            f"{path} has {what}; kbert supports {' and '.join(_ACTIVATIONS)}, without a residual."
        )
    return {"dense_size": size, "dense_activation": _ACTIVATIONS[name]}


def _tensors(folder):
    """Returns the tensors of the dense layer: dict of name -> array."""
    path = folder / "model.safetensors"
    if not path.is_file():
        arrays = _read_pickle(folder)
    else:
        check_not_pointer(path)
        try:
            with safetensors.safe_open(path, "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"cannot read {path}: {error}. Copy it again.") from error
    if "linear.weight" in arrays:  # (E, D)
        arrays.setdefault("linear.bias", np.zeros(arrays["linear.weight"].shape[:1], np.float32))
    return {f"{DENSE}.{name}": array for name, array in arrays.items()}


def _read_pickle(folder):
    """Returns the arrays of `pytorch_model.bin`, read by torch without executing pickled code."""
    path = folder / "pytorch_model.bin"
    check_not_pointer(path)
    with contextlib.suppress(ImportError):
        import torch

        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            return {name: tensor.float().numpy() for name, tensor in tensors.items()}
        except Exception as error:  # raised by pickle, zipfile or torch
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"cannot read {path}: {reason}") from error
    code = (
        f"import torch, safetensors.torch as s; "
        f"s.save_file(torch.load('{path}', weights_only=True), '{folder / 'model.safetensors'}')"
    )
    raise UserError(
        f"{folder} has no model.safetensors, and reading pytorch_model.bin requires PyTorch, which "
        f"is not installed. To convert it on a machine with PyTorch, run: "
        f'python -c "{code}"'
    )


def write(folder: pathlib.Path, config: BertConfig) -> None:
    """Writes the files of sentence-transformers, except the weights of the dense layer.

    If the config has no `embedding`, only deletes an existing `modules.json`.
    """
    settings = config.embedding
    if settings is None:
        (folder / MODULES_FILE).unlink(missing_ok=True)
        return
    D = config.hidden_size
    parts: dict[str, dict[str, Any]] = {
        "1_Pooling": {
            "word_embedding_dimension": D,
            **{f"pooling_mode_{f}": m == settings.pooling for f, m in _FLAGS.items()},
        }
    }
    if settings.dense_size:
        name = _CLASSES[settings.dense_activation]
        parts[DENSE] = {"in_features": D, "out_features": settings.dense_size, "bias": True}
        parts[DENSE]["activation_function"] = name
    if settings.normalize:
        parts[f"{len(parts) + 1}_Normalize"] = {}
    for name, values in parts.items():
        (folder / name).mkdir(exist_ok=True)
        atomic.write_json(folder / name / "config.json", values)
    kinds = ["Transformer", *(name.split("_")[1] for name in parts)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(["", *parts], kinds, strict=True))
    ]
    atomic.write_json(folder / MODULES_FILE, modules)
    length = settings.max_seq_length or config.max_position_embeddings
    atomic.write_json(folder / _SETTINGS_FILE, {"max_seq_length": length, "do_lower_case": False})
    prompts = dict(settings.prompts or {})
    name = next((name for name, text in prompts.items() if text == settings.prompt), "default")
    if settings.prompt:
        prompts[name] = settings.prompt
    values = {"prompts": prompts, "default_prompt_name": name if settings.prompt else None}
    values["similarity_fn_name"] = settings.similarity
    atomic.write_json(folder / _MODEL_FILE, values)
