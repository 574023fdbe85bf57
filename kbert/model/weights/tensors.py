"""kbert's names and shapes of the weights, and arrays that are read one at a time."""

import collections.abc
import dataclasses
import fnmatch
import os

import numpy as np

from kbert.errors import UserError

# A letter is a size: V vocabulary, D width, F inner width, P positions, T segments, C labels,
# A the width of all heads of a layer; "{i}" is each of the N layers.
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
    "mlm/decoder": "VD",  # of an untied head
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
}
REQUIRED_PARTS = ("bert/embeddings", "bert/encoder")


def size_of(letters, config, i):
    """The shape that letters of `SHAPES` (and H heads, K their width) mean in layer i."""
    sizes = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "C": config.num_labels,
        "A": config.block_heads(i) * config.head_size,
        "H": config.block_heads(i),
        "K": config.head_size,
    }
    return tuple(sizes[letter] if letter in sizes else int(letter) for letter in letters)


def _rows(config):
    """(name, name with "{i}", i, letters) of every weight that a model of this config may have."""
    for row, letters in SHAPES.items():
        if row == "mlm/decoder" and config.tie_word_embeddings:
            continue
        for i in range(config.num_hidden_layers) if "{i}" in row else [0]:
            yield row.format(i=i), row, i, letters


def weight_shapes(config):
    """dict of name -> shape of every weight that a model with this config may have."""
    return {name: size_of(letters, config, i) for name, _, i, letters in _rows(config)}


def part_of(name):
    """The part of a model that is there as a whole or not at all: 'mlm', 'bert/pooler', ..."""
    first, second = name.split("/")[:2]
    return f"{first}/{second}" if first == "bert" else first


@dataclasses.dataclass(frozen=True)
class Place:
    """Where another format keeps a weight: its name and shape there, and whether transposed."""

    name: str
    shape: tuple
    transposed: bool = False

    def to_kbert(self, array, shape):
        """The array as kbert has it, float32."""
        array = array.T if self.transposed else array
        return np.ascontiguousarray(array.reshape(shape), np.float32)

    def from_kbert(self, array):
        """The array as the other format has it, float32."""
        array = array.T if self.transposed else array
        return np.ascontiguousarray(array.reshape(self.shape), np.float32)


def places_of(config, names, variables, transposed=lambda name: False, letters=SHAPES):
    """Where another format keeps the weights of a model.

    Args:
        config: BertConfig.
        names: the format's table, of kbert's name of a layer or of a weight -> its name; "{i}" is
            the number of the layer, "{_i}" is that with "_" before it, and nothing for 0.
        variables: what is added to the name of a layer for each last part of a weight's name.
        transposed: whether the weight of this name (of kbert) is transposed there.
        letters: the shapes of weights that differ there, as in `SHAPES`.

    Returns:
        dict of kbert's name -> Place, of the weights that the format can hold.
    """
    places = {}
    for name, row, i, own_letters in _rows(config):
        layer, _, variable = row.rpartition("/")
        if row in names:
            external_name = names[row]
        elif layer in names and variable in variables:
            external_name = names[layer] + variables[variable]
        else:
            continue
        shape = size_of(letters.get(row, own_letters), config, i)
        turned = transposed(name)
        external_name = external_name.format(i=i, _i=f"_{i}" if i else "")
        places[name] = Place(external_name, shape[::-1] if turned else shape, turned)
    return places


class Tensors(collections.abc.Mapping):
    """Arrays by name, each read when it is asked for, so that one at a time is in memory.

    Args:
        shapes: dict of name -> shape. read: function from a name to its array.
    """

    def __init__(self, shapes, read):
        self.shapes = shapes
        self._read = read

    def __getitem__(self, name):
        return self._read(name)

    def __contains__(self, name):
        return name in self.shapes

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def matches(name, patterns):
    """Whether a name is one of the patterns, lies below one, or fits one with `*`."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(
        fnmatch.fnmatchcase(name, pattern) or name.startswith((f"{pattern}/", f"{pattern}."))
        for pattern in patterns
    )


def listed(names):
    """The first names of many, as text."""
    names = sorted(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def check_size(path, files, claimed_bytes):
    """Refuses tensors that claim more bytes than their files hold, before memory is taken for them.

    Raises:
        UserError: the files are cut off, or say what is not so.
    """
    held = sum(os.path.getsize(file) for file in files)
    if claimed_bytes > held:
        raise UserError(
            f"{path} is damaged: its tensors would be {claimed_bytes:,} bytes, but it holds "
            f"{held:,}. Copy or download it again."
        )
