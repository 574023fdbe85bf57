"""kbert's format: `config.json` and `weights.h5`, float32, with the names of `named_weights`."""

import contextlib
import dataclasses
import os
import pathlib
import types
from collections.abc import Collection, Iterator, Mapping

import h5py
import ml_dtypes
import numpy as np

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import (
    ExternalWeight,
    FolderContents,
    Tensors,
    check_size,
    weight_shapes,
)
from kbert.utils.formats import check_format, check_not_pointer, with_format

CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.h5"


@contextlib.contextmanager
def open_folder(folder: pathlib.Path, parts: Collection[str] = ()) -> Iterator[FolderContents]:
    """See `kbert.model.weights`."""
    with read_arrays(folder / WEIGHTS_FILE) as tensors:
        config = BertConfig.from_file(folder / CONFIG_FILE)
        yield dataclasses.asdict(config), tensors, external_weights


def external_weights(config: BertConfig, parts: Collection[str] = ()) -> dict[str, ExternalWeight]:
    """Returns an ExternalWeight for each weight, with the same name and shape."""
    return {name: ExternalWeight(name, shape) for name, shape in weight_shapes(config).items()}


def write(folder: pathlib.Path, config: BertConfig, tensors: Tensors, parts: set[str]) -> list[str]:
    """Writes the config and the weights; returns no notes, as this format supports all models."""
    config.save(pathlib.Path(folder) / CONFIG_FILE)
    write_arrays(pathlib.Path(folder) / WEIGHTS_FILE, tensors, with_format(WEIGHTS_FILE, {}))
    return []


@contextlib.contextmanager
def read_arrays(path: str | os.PathLike[str]) -> Iterator[Tensors]:
    """Yields the float arrays of an HDF5 file as `Tensors`, named by their paths in the file.

    Raises:
        UserError: the file cannot be read, is damaged, or stores an array in another file; or a
            newer kbert wrote it.
    """
    check_not_pointer(path)
    shapes, claimed = {}, 0

    def visit(name, item):
        nonlocal claimed
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual:
            raise UserError(f"{path}: {name} is in another file, which kbert does not open.")
        if item.shape is not None and _is_float(item):
            shapes[name] = item.shape
            claimed += item.size * item.dtype.itemsize

    def read(name):
        with _readable(path):
            array = file[name][()]
            return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array

    with _readable(path):
        file = h5py.File(path, "r")
    with file:
        with _readable(path):
            if os.path.basename(path) == WEIGHTS_FILE:
                format = file.attrs.get("format")
                check_format(path, format.tolist() if hasattr(format, "tolist") else format)
            file.visititems(visit)
        check_size(path, [path], claimed)
        yield Tensors(shapes, read)


def _is_float(item):
    """Returns whether a dataset holds floats; Keras stores bfloat16 as the raw dtype V2."""
    return item.dtype.kind == "f" or (item.dtype == "V2" and item.attrs["dtype"] == "bfloat16")


@contextlib.contextmanager
def _readable(path):
    """Converts errors of h5py, as raised for damaged files, to UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the weights {path}: {reason}.") from error


def write_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, object] = types.MappingProxyType({}),
) -> None:
    """Writes or replaces an HDF5 file; `arrays` is a dict of path in the file -> array.

    Uses a Python file object, because HDF5's own file I/O crashes the process (a segmentation fault
    in `close`) if the disk is full.
    """
    with open(path, "wb+") as raw, h5py.File(raw, "w") as file:
        file.attrs.update(attributes)
        for name in arrays:
            file[name] = arrays[name]
