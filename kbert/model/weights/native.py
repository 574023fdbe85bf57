"""kbert's own format: `config.json` and `weights.h5`, float32, in the names of `named_weights`."""

import contextlib
import dataclasses
import pathlib

import h5py
import numpy as np

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import Place, Tensors, check_size, weight_shapes

CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.h5"


@contextlib.contextmanager
def opened(folder):
    """Gives the fields of the config, the tensors, and the function from a config to their places.

    Raises:
        UserError: a file is missing or damaged.
    """
    config = BertConfig.from_file(folder / CONFIG_FILE)
    with read_arrays(folder / WEIGHTS_FILE) as tensors:
        yield dataclasses.asdict(config), tensors, places


def places(config, parts=()):
    """dict of kbert's name -> Place, which is here the same."""
    return {name: Place(name, shape) for name, shape in weight_shapes(config).items()}


def write(folder, config, tensors, parts):
    """Writes both files. Nothing is lost: there is no other code that would compute otherwise."""
    config.save(pathlib.Path(folder) / CONFIG_FILE)
    write_arrays(pathlib.Path(folder) / WEIGHTS_FILE, tensors)
    return []


@contextlib.contextmanager
def read_arrays(path):
    """Gives the arrays of an HDF5 file as `Tensors`, under their paths in it.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    shapes, claimed = {}, 0

    def see(name, item):
        nonlocal claimed
        if isinstance(item, h5py.Dataset) and np.issubdtype(item.dtype, np.number):
            shapes[name] = item.shape
            claimed += item.size * item.dtype.itemsize

    def read(name):
        with _readable(path):
            return file[name][()]

    with _readable(path):
        file = h5py.File(path, "r")
    with file:
        with _readable(path):
            file.visititems(see)
        check_size(path, [path], claimed)
        yield Tensors(shapes, read)


@contextlib.contextmanager
def _readable(path):
    """Turns the errors of HDF5 into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the weights {path}: {reason}.") from error


def write_arrays(path, arrays):
    """Writes a mapping of name -> array as HDF5.

    Through a file of Python's: HDF5's own writing ends the process (a segmentation fault in
    `close`) when the disk is full.
    """
    with open(path, "wb+") as raw, h5py.File(raw, "w") as file:
        for name in arrays:
            file[name] = arrays[name]
