"""Models of methods in the files of other runtimes, and whether these compute the same.

What is converted is `Endpoint.forward`: from the three features of a text to what the model makes
of them. Tokens are made, and results read, by whoever serves it: the vocabulary and `model.json`
say how.
"""

import numpy as np

import kbert
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES
from kbert.serving import saved_model
from kbert.tasks.outputs import MOST_MASKS
from kbert.utils import atomic

METADATA_FILE = "model.json"
MOST_BYTES = 2**31 - 2**24  # of weights: what the formats on the way hold is 2 GiB


def shapes(endpoint, runtime):
    """Shapes of the model of an endpoint: dict of its inputs, dict of its outputs.

    Returns:
        dicts of name -> list of ints, and of letters where a size is that of the request.
    """
    D, V = endpoint.model.config.hidden_size, endpoint.tokenizer.vocab_size
    sizes = {"D": D, "V": V, "1": 1, "2": 2}
    if runtime.fixed_sizes:  # C: a choice at a time, whose logit does not depend on the others
        L = endpoint.max_seq_length
        sizes |= {"B": 1, "C": 1, "L": L, "M": min(L, MOST_MASKS)}
    if labels := _labels(endpoint):
        sizes["C"] = len(labels)
    features = dict.fromkeys(ENCODER_FEATURES, "BCL" if endpoint.takes_choices else "BL")
    outputs = {name: shape for name, (shape, _) in endpoint.forward_spec.items()}
    return tuple(
        {name: [sizes.get(letter, letter) for letter in letters] for name, letters in side.items()}
        for side in (features, outputs)
    )


def _labels(endpoint):
    """Names of the classes, in the order of the logits; those of choices are only numbers."""
    if endpoint.takes_choices:
        return []
    return list(getattr(endpoint.task, "label_names", None) or [])


def save_conversion(endpoint, runtime, folder, quantize=None, calibration=()):
    """Writes the model of a method for another runtime, compared with the method by that runtime.

    Beside it lie the vocabulary with its settings, config.json, and `model.json`, which says what
    goes in and what comes out.

    Args:
        endpoint: Endpoint of a float32 model. runtime: of `kbert.serving.runtimes`.
        folder: to write to. quantize: one of the runtime's `quantizations`, or None.
        calibration: list of features of single texts that the activations' ranges are taken from.

    Returns:
        dict, what is in `model.json`, with `largest_difference` and, of a classifier,
        `same_labels`: of how many of the `samples` texts, or pairs.

    Raises:
        UserError: the model is too large for the format.
    """
    size = sum(4 * np.prod(weight.shape, dtype=np.int64) for weight in endpoint.model.weights)
    if size > MOST_BYTES:
        raise UserError(
            f"a model of {size / 1e9:,.1f} GB does not fit --format={runtime.name}, which holds "
            f"2 GB; --format=serving holds any."
        )
    inputs, outputs = shapes(endpoint, runtime)
    runtime.write(endpoint, (inputs, outputs), folder, quantize, calibration)
    saved_model.save_settings(endpoint, folder)
    metadata = {
        "kbert": kbert.__version__,
        "format": runtime.name,
        "file": runtime.file,
        "weights": quantize or "float32",
        "calibration_examples": len(calibration),
        "method": endpoint.name,
        "texts": list(endpoint.texts),
        "inputs": {n: {"shape": shape, "dtype": "int32"} for n, shape in inputs.items()},
        "outputs": {
            name: {"shape": shape, "dtype": "float32", "meaning": endpoint.forward_spec[name][1]}
            for name, shape in outputs.items()
        },
        "labels": _labels(endpoint),
        "max_seq_length": endpoint.max_seq_length,
        **compared(endpoint, runtime.load(folder), runtime.fixed_sizes),
    }
    atomic.write_json(folder / METADATA_FILE, metadata)
    return metadata


def compared(endpoint, compute, fixed_sizes):
    """How a runtime computes the sample texts, beside the endpoint: see `save_conversion`.

    Args:
        endpoint: Endpoint. compute: as `Runtime.load` returns it. fixed_sizes: as of the Runtime.
    """
    features = sample_features(endpoint)
    if fixed_sizes:
        batches = single_texts(features, endpoint.max_seq_length)
    else:
        batches = [features, {name: x[:1, ..., :5] for name, x in features.items()}]
    difference, same = 0.0, []
    for batch in batches:
        expected = {name: x.numpy() for name, x in endpoint.forward(batch).items()}
        result = compute(batch)
        difference = max(difference, saved_model.largest_difference(result, expected))
        if decide := endpoint.decisions:
            same += (decide(result["logits"]) == decide(expected["logits"])).all(-1).tolist()
    summary = {"samples": len(features["input_ids"]), "largest_difference": difference}
    return summary | ({"same_labels": sum(same[: summary["samples"]])} if same else {})


def sample_features(endpoint):
    """The features of the sample texts, as the model of a method gets them: int32 arrays."""
    captured = []

    def compute(features):
        captured.append({name: x.numpy() for name, x in features.items()})
        return endpoint.forward(features)

    before, endpoint.compute = endpoint.compute, compute
    try:
        endpoint.from_texts(**saved_model.samples(endpoint))
    finally:
        endpoint.compute = before
    return captured[0]


def single_texts(features, L):
    """The texts of features, and of each the choices, one by one and padded to L tokens."""
    *axes, length = features["input_ids"].shape
    for index in np.ndindex(*axes):
        rows = {name: np.pad(x[index], (0, L - length)) for name, x in features.items()}
        yield {name: row.reshape([1] * len(axes) + [L]) for name, row in rows.items()}
