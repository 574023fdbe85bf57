"""Creates a smaller model from some of a model's encoder blocks."""

import dataclasses
from collections.abc import Sequence

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import Tensors

_BLOCK = "bert/encoder/layer_{}/"


def resolve_layers(layers: int | Sequence[int], N: int) -> tuple[int, ...]:
    """Returns the selected encoder blocks: a tuple of numbers from 1, in increasing order.

    Args:
        layers: a number of blocks, evenly spaced up to the last one: 3 of 12 selects 4, 8 and 12
            (Sun et al. 2019, arXiv:1908.09355, section 3, "PKD-Skip"); or block numbers from 1.
        N: number of encoder blocks.

    Raises:
        UserError: there are no numbers, or they are out of range or not increasing.
    """
    if isinstance(layers, int):
        M = layers
        if not 1 <= M <= N:
            raise UserError(f"layers must be 1 to {N}, the number of blocks; got {M}.")
        return tuple((2 * i * N + M) // (2 * M) for i in range(1, M + 1))
    layers = tuple(layers)
    if not layers or list(layers) != sorted(set(layers)) or not 1 <= layers[0] <= layers[-1] <= N:
        raise UserError(
            f"layers must be block numbers from 1 to {N}, increasing; got "
            f"{', '.join(map(str, layers)) or 'none'}."
        )
    return layers


def select_layers(
    config: BertConfig, weights: Tensors, layers: int | Sequence[int]
) -> tuple[BertConfig, Tensors]:
    """Returns the config and the lazily read weights of a model with some of the encoder blocks.

    `layers`, and the errors, are as for `resolve_layers`.
    """
    layers = resolve_layers(layers, config.num_hidden_layers)
    names = {name: name for name in weights if not name.startswith("bert/encoder/")}
    for i, number in enumerate(layers):
        prefix = _BLOCK.format(number - 1)
        names |= {
            _BLOCK.format(i) + name.removeprefix(prefix): name
            for name in weights
            if name.startswith(prefix)
        }
    shapes = {name: weights.shapes[source_name] for name, source_name in names.items()}
    heads = config.attention_heads_per_layer and tuple(
        config.attention_heads_per_layer[number - 1] for number in layers
    )
    config = dataclasses.replace(
        config, num_hidden_layers=len(layers), attention_heads_per_layer=heads
    )
    return config, Tensors(shapes, lambda name: weights[names[name]])
