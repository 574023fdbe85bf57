"""Reads weights from the variables of a SavedModel written by `kbert.export`.

The SavedModel's folder `assets.extra` contains the config, the vocabulary and `kbert.json`, which
lists kbert's names of the variables in the order in which the SavedModel stores them.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Collection, Iterator

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.google import read_checkpoint
from kbert.model.weights.tensors import ExternalWeight, FolderContents, weight_shapes
from kbert.utils.formats import is_quantized, read_export

CONFIG_FILE = "config.json"


@contextlib.contextmanager
def open_folder(folder: pathlib.Path, parts: Collection[str] = ()) -> Iterator[FolderContents]:
    """See `kbert.model.weights`; `folder` is `assets.extra` of a SavedModel."""
    metadata = read_export(folder)
    names = metadata["weights"]
    if is_quantized(metadata):
        raise UserError(
            f"{folder.parent} has 8-bit weights, which can only be served. Use the folder that it "
            f"was exported from."
        )
    keys = {name: f"variables/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i, name in enumerate(names)}
    tensors = read_checkpoint(
        folder.parent / "variables" / "variables", set(keys.values()).__contains__
    )

    def external_weights(config):
        shapes = weight_shapes(config)
        return {name: ExternalWeight(keys.get(name, name), shape) for name, shape in shapes.items()}

    yield dataclasses.asdict(BertConfig.from_file(folder / CONFIG_FILE)), tensors, external_weights
