"""kbert's names and shapes of the weights, and lazily loaded arrays."""

import collections.abc
import dataclasses
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from kbert.config import BertConfig
from kbert.errors import UserError

# kbert's name of a weight -> its shape. V vocabulary, D width, F inner width, P positions,
# T segment types, C labels, A all heads of a block (H * K), E width of text embeddings.
# "{i}" is the number of each block, from 0.
SHAPES = {
    "bert/embeddings/word_embeddings/embeddings": "VD",
    "bert/embeddings/position_embeddings/embeddings": "PD",
    "bert/embeddings/token_type_embeddings/embeddings": "TD",
    "bert/embeddings/layer_norm/gamma": "D",
    "bert/embeddings/layer_norm/beta": "D",
    "bert/encoder/layer_{i}/attention/query/kernel": "DA",
    "bert/encoder/layer_{i}/attention/query/bias": "A",
    "bert/encoder/layer_{i}/attention/key/kernel": "DA",
    "bert/encoder/layer_{i}/attention/key/bias": "A",
    "bert/encoder/layer_{i}/attention/value/kernel": "DA",
    "bert/encoder/layer_{i}/attention/value/bias": "A",
    "bert/encoder/layer_{i}/attention/output/kernel": "AD",
    "bert/encoder/layer_{i}/attention/output/bias": "D",
    "bert/encoder/layer_{i}/attention_norm/gamma": "D",
    "bert/encoder/layer_{i}/attention_norm/beta": "D",
    "bert/encoder/layer_{i}/intermediate/kernel": "DF",
    "bert/encoder/layer_{i}/intermediate/bias": "F",
    "bert/encoder/layer_{i}/output/kernel": "FD",
    "bert/encoder/layer_{i}/output/bias": "D",
    "bert/encoder/layer_{i}/output_norm/gamma": "D",
    "bert/encoder/layer_{i}/output_norm/beta": "D",
    "bert/pooler/dense/kernel": "DD",
    "bert/pooler/dense/bias": "D",
    "mlm/transform/kernel": "DD",
    "mlm/transform/bias": "D",
    "mlm/layer_norm/gamma": "D",
    "mlm/layer_norm/beta": "D",
    "mlm/output_bias": "V",
    "mlm/decoder": "VD",  # only if untied
    "nsp/classifier/kernel": "D2",
    "nsp/classifier/bias": "2",
    "sequence_classifier/dense/kernel": "DC",
    "sequence_classifier/dense/bias": "C",
    "token_classifier/dense/kernel": "DC",
    "token_classifier/dense/bias": "C",
    "span_classifier/dense/kernel": "D2",
    "span_classifier/dense/bias": "2",
    "choice_classifier/dense/kernel": "D1",
    "choice_classifier/dense/bias": "1",
    "embedding/dense/kernel": "DE",  # only with a dense layer
    "embedding/dense/bias": "E",
}
REQUIRED_PARTS = ("bert/embeddings", "bert/encoder")


def _shape_of(letters: str, config: BertConfig, i: int) -> tuple[int, ...]:
    """Converts letters of `SHAPES`, or H (heads) and K (head width), to a shape in block i."""
    sizes = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "C": config.num_labels,
        "E": config.embedding_settings.dense_size or config.hidden_size,
        "A": config.block_heads(i) * config.head_size,
        "H": config.block_heads(i),
        "K": config.head_size,
    }
    return tuple(sizes[letter] if letter in sizes else int(letter) for letter in letters)


def _shape_rows(config):
    """Yields (name, name with "{i}", i, letters) of each weight that a model may have."""
    for row, letters in SHAPES.items():
        if row == "mlm/decoder" and config.tie_word_embeddings:
            continue
        if row.startswith("embedding/") and not config.embedding_settings.dense_size:
            continue
        for i in range(config.num_hidden_layers) if "{i}" in row else [0]:
            yield row.format(i=i), row, i, letters


def weight_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes, by name, of all weights that a model with this config may have."""
    return {name: _shape_of(letters, config, i) for name, _, i, letters in _shape_rows(config)}


def part_of(name: str) -> str:
    """Returns the part of the model that a weight belongs to, such as "mlm" or "bert/pooler"."""
    first, second = name.split("/")[:2]
    return f"{first}/{second}" if first == "bert" else first


@dataclasses.dataclass(frozen=True)
class ExternalWeight:
    """A weight in another format: its name, its shape, and whether it is transposed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    def to_kbert(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Converts an array of the other format to kbert's: float32, with kbert's `shape`."""
        array = array.T if self.transposed else array
        return np.ascontiguousarray(array.reshape(shape), np.float32)

    def from_kbert(self, array: np.ndarray) -> np.ndarray:
        """Converts an array of kbert's format to the other format, float32."""
        return self.to_kbert(array, self.shape)


def map_weights(
    config: BertConfig,
    names: Mapping[str, str],
    variables: Mapping[str, str],
    transposed: Callable[[str], bool] = lambda name: False,
    shape_overrides: Mapping[str, str] = SHAPES,
) -> dict[str, ExternalWeight]:
    """Returns the names, shapes and transpositions of a model's weights in another format.

    The keys are kbert's names of the weights that the format supports.

    Args:
        names: dict of kbert's name of a layer or weight -> the format's name. "{i}" stands for the
            number of a block; "{_i}" for "_" and the number, or nothing for block 0.
        variables: dict of the last part of kbert's name of a weight, such as "kernel" -> suffix of
            the format's name; used for weights whose layer is in `names`.
        transposed: function of kbert's name; returns whether the format transposes the weight.
        shape_overrides: shapes that differ in the format, in the letters of `_shape_of`.
    """
    external_weights = {}
    for name, row, i, letters in _shape_rows(config):
        layer, _, variable = row.rpartition("/")
        if row in names:
            external_name = names[row]
        elif layer in names and variable in variables:
            external_name = names[layer] + variables[variable]
        else:
            continue
        shape = _shape_of(shape_overrides.get(row, letters), config, i)
        is_transposed = transposed(name)
        external_name = external_name.format(i=i, _i=f"_{i}" if i else "")
        external_weights[name] = ExternalWeight(
            external_name, shape[::-1] if is_transposed else shape, is_transposed
        )
    return external_weights


class Tensors(collections.abc.Mapping[str, np.ndarray]):
    """A mapping of names to arrays that are read on access.

    Only one array needs to be in memory at a time.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
        self.shapes: dict[str, tuple[int, ...]] = shapes
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


# Fields of BertConfig, tensors by the format's names, function from a config to ExternalWeights.
FolderContents = tuple[dict[str, Any], Tensors, Callable[[BertConfig], dict[str, ExternalWeight]]]


def matches(name: str, patterns: str | Iterable[str]) -> bool:
    """Returns whether a name matches a pattern (with `*`), or starts with one and "/" or "."."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(
        fnmatch.fnmatchcase(name, pattern) or name.startswith((f"{pattern}/", f"{pattern}."))
        for pattern in patterns
    )


def abbreviate_names(names: Iterable[str]) -> str:
    """Returns the first eight of the sorted names, and the number of the others, as text."""
    names = sorted(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def check_size(
    path: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]], claimed_bytes: int
) -> None:
    """Raises UserError if tensors are larger than their files, before memory is allocated for them.

    The files claim that the tensors have `claimed_bytes`. The error names `path`.
    """
    held = sum(os.path.getsize(file) for file in files)
    if claimed_bytes > held:
        raise UserError(
            f"{path} is damaged: its tensors need {claimed_bytes:,} bytes, but it has only "
            f"{held:,}. Copy or download it again."
        )
