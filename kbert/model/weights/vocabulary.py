"""Enlarges the vocabulary of a model's weights; the learned rows are unchanged."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kbert.config import BertConfig
from kbert.model.weights.tensors import SHAPES, Tensors

# The weights with a row for each vocabulary entry.
ROWS = tuple(name for name, letters in SHAPES.items() if letters.startswith("V"))


def resize_vocabulary(
    config: BertConfig, weights: Tensors, vocab_size: int, pieces: Mapping[int, Sequence[int]]
) -> tuple[BertConfig, Tensors]:
    """Returns the config and the lazily read weights of a model with a larger vocabulary.

    `pieces` has, for the id of a new entry, the ids of its WordPieces in the old vocabulary, whose
    rows are averaged for the new entry. The rows of entries without WordPieces are initialized as
    in a new model; their biases are 0.
    """
    larger = dataclasses.replace(config, vocab_size=vocab_size)
    shapes = {n: (vocab_size, *s[1:]) if n in ROWS else s for n, s in weights.shapes.items()}

    def read(name):
        array = weights[name]
        if name not in ROWS:
            return array
        result = np.concatenate([array, new_rows(config, shapes[name], len(array))])
        for id, ids in pieces.items():
            if ids:
                result[id] = array[list(ids)].mean(axis=0)
        return result

    return larger, Tensors(shapes, read)


def new_rows(config: BertConfig, shape: tuple[int, ...], first: int) -> np.ndarray:
    """Returns float32 initial values for row `first` and the later rows of a weight of a shape."""
    from kbert.model.attention import matrix_initializer

    shape = (max(shape[0] - first, 0), *shape[1:])
    if len(shape) == 1 or not shape[0]:
        return np.zeros(shape, np.float32)
    return np.array(matrix_initializer(config)(shape), np.float32)
