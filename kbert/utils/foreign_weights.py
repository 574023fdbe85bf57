"""Explains why kbert cannot read a folder of weights, and how to convert them."""

import json
import os
import pathlib
import re
import shlex

_PICKLES = ("pytorch_model*.bin*", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_SERVING_ONLY = "a format for serving only. Use the folder that it was exported from"
_OTHERS = {
    "saved_model.pb": f"a SavedModel that was not written by kbert.export, {_SERVING_ONLY}",
    "*.onnx": f"an ONNX model, {_SERVING_ONLY}",
    "openvino_model.xml": f"an OpenVINO model, {_SERVING_ONLY}",
    "model.xml": f"an OpenVINO model, {_SERVING_ONLY}",
    "*.tflite": f"a LiteRT model, {_SERVING_ONLY}",
    "*.gguf": "a model for llama.cpp, usually quantized. Use the model that it was converted from",
    "rust_model.ot": "weights of rust-bert. Use the model that they were converted from",
}
# Weights that only older versions of transformers read: (library, argument of from_pretrained).
_OLD_HF = {
    "tf_model.h5": ("TensorFlow", "from_tf"),
    "flax_model.msgpack": ("Flax", "from_flax"),
}
_PEFT_CLASSES = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
}


def unsupported_reason(folder: pathlib.Path) -> str | None:
    """Returns why kbert cannot read the weights of a folder and how to convert them.

    Returns None if the folder has no weights in a known format.
    """
    if (folder / "adapter_config.json").is_file():
        return _adapter_reason(folder)
    for pattern in _PICKLES:
        for path in sorted(folder.glob(pattern)):
            return (
                f"{path} is a pickle, which may execute arbitrary code when loaded; kbert does not "
                f"read pickles. If you trust it, {conversion_advice(folder, folder)}"
            )
    for name, (library, argument) in _OLD_HF.items():
        if (folder / name).is_file():
            command = _conversion_command(folder, folder, f", {argument}=True")
            return (
                f"{folder / name} contains weights for HF's {library} models, which transformers "
                f"5 no longer supports. "
                f'Convert them with "transformers<5", which also needs {library}: {command}'
            )
    for path in sorted(folder.glob("*.index")):
        return (
            f"{folder} has the TensorFlow checkpoint {path.stem}, but no bert_config.json, which "
            f"describes its architecture. Copy it from the source of the checkpoint."
        )
    for pattern, what in _OTHERS.items():
        for path in sorted(folder.glob(pattern)):
            return f"{path} is {what}."
    return None


def conversion_advice(folder: pathlib.Path, name: str | os.PathLike[str]) -> str:
    """Returns advice with a command that converts a pickle to safetensors.

    The command loads either the whole model with sentence-transformers, or with transformers the
    class that the folder's `config.json` names.

    Args:
        folder: local folder with the JSON files of the model.
        name: folder or name of the model on the Hugging Face hub, for the command.
    """
    return f"convert it to safetensors: {_conversion_command(folder, name, '')}"


def _conversion_command(folder, name, arguments):
    target = str(name).rstrip("/").split("/")[-1] + "-safe"
    source = "transformers"
    if (folder / "modules.json").is_file():
        source, architecture = "sentence_transformers", "SentenceTransformer"
        load = f"M({str(name)!r})"
    else:
        architecture = _json_string(folder / "config.json", "architectures", 0)
        if not re.fullmatch(r"Bert\w{1,40}", architecture, re.ASCII):
            architecture = "BertForPreTraining"
        load = f"M.from_pretrained({str(name)!r}{arguments})"
    code = f"from {source} import {architecture} as M; {load}.save_pretrained({target!r})"
    return f"python -c {shlex.quote(code)}"


def _json_string(path, *keys):
    """Returns the string under nested keys of a JSON file, or ""."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        for key in keys:
            value = value[key]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError):
        return ""
    return value if isinstance(value, str) else ""


def _adapter_reason(folder):
    path = folder / "adapter_config.json"
    base = _json_string(path, "base_model_name_or_path") or "another model"
    name = _PEFT_CLASSES.get(_json_string(path, "task_type"), "AutoPeftModelForFeatureExtraction")
    target = folder.name + "-merged"
    code = (
        f"from peft import {name} as M; "
        f"M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained({target!r})"
    )
    return (
        f"{folder} has only an adapter for {base} (adapter_config.json), not the weights of a "
        f"model. Merge the adapter into its model with PEFT: python -c {shlex.quote(code)}"
    )
