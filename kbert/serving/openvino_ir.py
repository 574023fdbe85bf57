"""OpenVINO exports: the model of an endpoint as OpenVINO IR, without its tokenizer.

The model computes `Endpoint.forward`, whose inputs are the `ENCODER_FEATURES`. The serving code
must tokenize the texts and decode the outputs. The model's folder contains the vocabulary, the
tokenizer's settings and, in `model.json`, a description of the model for this purpose.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import kbert
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES
from kbert.inference.backends import openvino_model
from kbert.serving import saved_model
from kbert.utils import atomic

if TYPE_CHECKING:
    import pathlib

    from kbert.tasks.endpoint import Endpoint

MODEL_FILE, METADATA_FILE = "model.xml", "model.json"
MAX_WEIGHT_BYTES = (
    2**31 - 2**24
)  # maximum size of the weights; the limit of a TensorFlow graph is 2 GiB


def save_openvino(
    endpoint: "Endpoint", folder: "pathlib.Path", quantize: str | None = None
) -> dict[str, Any]:
    """Writes the model of an endpoint and its metadata, and compares its outputs in OpenVINO.

    Args:
        endpoint: Endpoint of a float32 model.
        folder: existing folder. The files of `kbert.serving.saved_model.save_settings` are written
            to it, too.
        quantize: "float16" for weights of this dtype, or None.

    Returns:
        The content of `model.json`. It includes the results of the comparison: `samples`, the
        number of texts; `largest_difference` of their outputs; and, for a classifier,
        `same_labels`, the number of texts with the same predicted labels.

    Raises:
        UserError: the model is too large to convert.
    """
    size = sum(4 * np.prod(weight.shape, dtype=np.int64) for weight in endpoint.model.weights)
    if size > MAX_WEIGHT_BYTES:
        raise UserError(
            f"the model has {size / 1e9:,.2f} GB; --format=openvino supports at most "
            f"{MAX_WEIGHT_BYTES / 1e9:.2f} GB. Use --format=serving, which has no limit."
        )
    write_model(endpoint, folder, quantize)
    saved_model.save_settings(endpoint, folder)
    metadata = _metadata(endpoint, quantize) | _compared(endpoint, load_model(folder))
    atomic.write_json(folder / METADATA_FILE, metadata)
    return metadata


def _metadata(endpoint, quantize):
    """Returns a description of the model for `model.json`; letters in shapes are variable sizes."""
    labels, inputs = list(getattr(endpoint.task, "label_names", None) or []), ["B", "L"]
    if endpoint.takes_choices:
        labels, inputs = [], ["B", "C", "L"]
    sizes = {"1": 1, "2": 2, "D": endpoint.model.config.hidden_size}
    sizes["E"] = endpoint.model.config.embedding_settings.dense_size or sizes["D"]
    sizes |= {"V": endpoint.tokenizer.vocab_size, "C": len(labels) or "C"}
    outputs = {
        name: {
            "shape": [sizes.get(letter, letter) for letter in letters],
            "dtype": "float32",
            "meaning": meaning,
        }
        for name, (letters, meaning) in endpoint.forward_spec.items()
    }
    return {
        "kbert": kbert.__version__,
        "format": "openvino",
        "file": MODEL_FILE,
        "weights": quantize or "float32",
        "method": endpoint.name,
        "texts": list(endpoint.texts),
        "inputs": {name: {"shape": inputs, "dtype": "int32"} for name in ENCODER_FEATURES},
        "outputs": outputs,
        "labels": labels,
        "max_seq_length": endpoint.max_seq_length,
    }


def write_model(endpoint: "Endpoint", folder: "pathlib.Path", quantize: str | None = None) -> None:
    """Writes `model.xml` and `model.bin`.

    Args:
        endpoint, folder, quantize: as for `save_openvino`.

    Raises:
        OSError: the files cannot be written.
    """
    import openvino

    example = np.zeros([1] * (3 if endpoint.takes_choices else 2), np.int32)
    features = dict.fromkeys(ENCODER_FEATURES, example)
    model = openvino_model(openvino.Core(), endpoint.forward, features, endpoint.model)
    try:
        openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=quantize is not None)
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())) from error


def load_model(
    folder: "pathlib.Path", threads: int | None = None
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Loads the model of a folder as a function from a dict of arrays to a dict of arrays.

    It computes in float32; OpenVINO's default may be bfloat16.

    Args:
        folder: a folder written by `write_model`.
        threads: number of threads; None: OpenVINO's default.
    """
    import openvino

    core = openvino.Core()
    read = core.read_model(folder / MODEL_FILE)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = core.compile_model(read, "CPU", settings)
    names = [port.any_name for port in read.outputs]  # compiled ports may have other names too
    return lambda features: dict(zip(names, model(features).values(), strict=True))


def _compared(endpoint, compute):
    """Compares the outputs for the sample texts, in batches of two shapes.

    Returns:
        dict of `samples`, `largest_difference` and `same_labels`; see `save_openvino`.
    """
    features = sample_features(endpoint)
    differences = []
    for batch in (features, {name: x[:1, ..., :5] for name, x in features.items()}):
        expected = {name: x.numpy() for name, x in endpoint.forward(batch).items()}
        result = compute(batch)
        differences.append(saved_model.largest_difference(result, expected))
        if batch is features and (decide := endpoint.labels_from_logits):
            same = (decide(result["logits"]) == decide(expected["logits"])).all(-1)
    summary = {"samples": len(features["input_ids"]), "largest_difference": max(differences)}
    return summary | ({"same_labels": int(same.sum())} if endpoint.labels_from_logits else {})


def sample_features(endpoint: "Endpoint") -> dict[str, np.ndarray]:
    """Returns the features that the model receives for the sample texts, as int32 arrays."""
    samples = saved_model.samples(endpoint)
    features, _ = endpoint.encode_texts(**samples)
    arrays = {name: x.numpy() for name, x in features.items()}
    if endpoint.takes_choices:  # (B * C, 1, L) -> (B, C, L)
        B = len(samples["choices"])
        return {name: x.reshape(B, -1, x.shape[-1]) for name, x in arrays.items()}
    return arrays
