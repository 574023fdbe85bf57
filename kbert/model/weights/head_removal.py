"""Removes attention heads from weights, and restores them as zeros.

A head is K columns of its block's query, key and value kernels, with their biases, and K rows of
the output projection. A head of zeros does not change the output of the block.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import Tensors, weight_shapes

_ATTENTION = re.compile(r"bert/encoder/layer_(\d+)/attention/(query|key|value|output)/(\w+)")


def heads_text(attention_heads_per_layer: Sequence[int] | None) -> str:
    """Formats a config's `attention_heads_per_layer`, such as "12, 8, 12", or "none pruned"."""
    if attention_heads_per_layer is None:
        return "none pruned"
    return ", ".join(map(str, attention_heads_per_layer))


def _attention_heads_axis(name):
    """Returns the block number and head axis of a weight, or None if it has no head axis."""
    match = _ATTENTION.fullmatch(name)
    if match is None or match.group(2, 3) == ("output", "bias"):
        return None
    return int(match[1]), (0 if match[2] == "output" else -1)


def remove_heads(
    config: BertConfig, weights: Tensors, heads_to_keep: Sequence[Sequence[int]]
) -> tuple[BertConfig, Tensors]:
    """Returns the config and the lazily read weights of a model after removing heads.

    `heads_to_keep` has, for each block, the numbers of one or more heads to keep, from 0. Raises
    UserError if it does not have a list for each block, or a list is empty, or has a duplicate or a
    head that does not exist.
    """
    _check_heads_to_keep(config, heads_to_keep)
    smaller = dataclasses.replace(config, attention_heads_per_layer=tuple(map(len, heads_to_keep)))

    def read(name):
        location, array = _attention_heads_axis(name), weights[name]
        if location is None:
            return array
        block, axis = location
        K = config.head_size
        places = [head * K + k for head in sorted(heads_to_keep[block]) for k in range(K)]
        return np.take(array, places, axis=axis)

    shapes = weight_shapes(smaller)
    return smaller, Tensors({name: shapes[name] for name in weights}, read)


def _check_heads_to_keep(config, heads_to_keep):
    if len(heads_to_keep) != config.num_hidden_layers:
        raise UserError(
            f"heads_to_keep must list the heads of each of the {config.num_hidden_layers} blocks; "
            f"got {len(heads_to_keep)} lists."
        )
    for block, numbers in enumerate(heads_to_keep):
        H = config.block_heads(block)
        if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(H)):
            raise UserError(
                f"heads_to_keep must list one or more different heads of block {block}, as "
                f"numbers from 0 to {H - 1}; got {list(numbers)}."
            )


def restore_heads(config: BertConfig, weights: Tensors) -> tuple[BertConfig, Tensors]:
    """Returns the config and the lazily read weights with all heads, removed ones as zeros.

    The model's outputs do not change. In each block, the zero heads come last.
    """
    larger = dataclasses.replace(config, attention_heads_per_layer=None)
    shapes = weight_shapes(larger)

    def read(name):
        array = weights[name]
        if array.shape == shapes[name]:
            return array
        added = zip(shapes[name], array.shape, strict=True)
        return np.pad(array, [(0, full - left) for full, left in added])

    return larger, Tensors({name: shapes[name] for name in weights}, read)
