"""kbert's own format: `config.json` and `weights.h5`, float32, in the names of `named_weights`."""

import contextlib
import dataclasses
import pathlib

import h5py
import ml_dtypes

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import Place, Tensors, check_size, weight_shapes

CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.h5"


@contextlib.contextmanager
def opened(folder, parts=()):
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
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual:
            raise UserError(f"{path}: {name} lies in another file, which kbert does not open.")
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
            file.visititems(see)
        check_size(path, [path], claimed)
        yield Tensors(shapes, read)


def _is_float(item):
    """Whether an array holds floats, or bfloat16 as Keras writes it."""
    return item.dtype.kind == "f" or (item.dtype == "V2" and item.attrs["dtype"] == "bfloat16")


@contextlib.contextmanager
def _readable(path):
    """Turns the errors of HDF5 into one line: a damaged file raises any of these."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
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
