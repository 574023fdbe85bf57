"""Messages of `kbert.export` about the model, the written files and the checks of the outputs."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kbert.errors import UserError
from kbert.serving.saved_model import largest_difference

if TYPE_CHECKING:
    import pathlib

    import numpy as np

    from kbert.model.folder import ModelFolder
    from kbert.model.pretrained import PretrainedModel
    from kbert.tasks.endpoint import Endpoint

# Maximum difference of float32 outputs. Padding and other kernels change the order of summation.
TOLERANCE = 1e-5


def source_line(folder: "ModelFolder", what: str, model: "PretrainedModel", length: int) -> str:
    """Returns a line about the model that is exported.

    Args:
        folder: folder of the model.
        what: name of the exported method.
        model: the model.
        length: maximum length of a sequence in tokens.
    """
    config = model.config
    return (
        f"from {folder} ({folder.format}): {what}, "
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, {length} tokens"
    )


def target_line(target: "pathlib.Path") -> str:
    """Returns a line with the folder that was written and its size."""
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return f"to {target}: {size / 1e6:,.1f} MB"


def checked_line(
    answers: "Mapping[str, np.ndarray]", expected: "Mapping[str, Any]", whose: str
) -> str:
    """Returns a line with the difference between a SavedModel's outputs and expected outputs.

    Args:
        answers: outputs of the SavedModel.
        expected: expected outputs.
        whose: name of the source of the expected outputs.

    Raises:
        UserError: the difference is larger than `TOLERANCE`.
    """
    difference, count = largest_difference(answers, expected), len(next(iter(expected.values())))
    if not difference <= TOLERANCE:
        raise UserError(
            f"the outputs of the SavedModel for {count} texts differ from {whose} by "
            f"{difference:.1e}; at most {TOLERANCE:g} is allowed. Nothing was written."
        )
    return (
        f"checked in a process without kbert: {count} texts, same outputs as {whose} (largest "
        f"difference {difference:.1e})"
    )


def computed_line(metadata: Mapping[str, Any]) -> str:
    """Returns a line with the difference between the outputs of OpenVINO and of the model.

    Raises UserError if it is larger than `TOLERANCE` or, for a quantized model, not finite.
    `metadata` are the contents of `model.json`.
    """
    difference = metadata["largest_difference"]
    limit, allowed = TOLERANCE, f"at most {TOLERANCE:g}"
    if metadata["weights"] != "float32":
        limit, allowed = sys.float_info.max, "any finite difference"
    if not difference <= limit:
        raise UserError(
            f"the outputs of {metadata['file']} differ from kbert's model by {difference:.1e}; "
            f"{allowed} is allowed. Nothing was written."
        )
    line = (
        f"checked in its runtime: {metadata['samples']} texts in {metadata['weights']}, largest "
        f"difference {difference:.1e}"
    )
    if "same_labels" in metadata:
        line += f", same labels for {metadata['same_labels']} of {metadata['samples']}"
    return line


def port_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yields lines with the inputs and outputs of an OpenVINO model, from its `model.json`."""
    shape = ", ".join(map(str, metadata["inputs"]["input_ids"]["shape"]))
    yield f"  {metadata['file']}: {', '.join(metadata['inputs'])} ({shape}) int32"
    for name, output in metadata["outputs"].items():
        yield f"    -> {name} ({', '.join(map(str, output['shape']))}) float32, {output['meaning']}"


def output_spec_lines(endpoint: "Endpoint", functions: Iterable[str]) -> Iterator[str]:
    """Yields lines with the inputs of a SavedModel's public signatures and the outputs for texts.

    Args:
        endpoint: the exported Endpoint.
        functions: names of the signatures.
    """
    texts = ", ".join(f"{n} ({'B' if a == 1 else 'B, C'})" for n, a in endpoint.texts.items())
    takes = {
        "serving_default": f"{texts} string",
        "from_ids": "input_ids, attention_mask, token_type_ids",
        "from_examples": f"inputs (B,) serialized tf.Examples with {', '.join(endpoint.texts)}",
        "classify": "inputs, for Classify: classes and scores (B, C)",
        "regress": "inputs, for Regress: outputs (B,)",
    }
    for name in (name for name in functions if name in takes):
        yield f"  {name}: {takes[name]}"
        if name == "serving_default":
            for output, meaning in endpoint.output_spec.items():
                yield f"    -> {output} {meaning}"


def serve_line(target: "pathlib.Path") -> str:
    """Returns a line with the command that serves a SavedModel.

    If the folder's name is not a number, returns a note that TensorFlow Serving expects one.
    """
    if not target.name.isdigit():
        return f"note: TensorFlow Serving expects a numbered folder, such as {target / '1'}"
    return (
        f"serve it: python -m kbert.serve (or tensorflow_model_server) --port=8500 "
        f"--rest_api_port=8501 --model_name={target.parent.name} --model_base_path={target.parent}"
    )


def table_lines(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table; the first column is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells])
