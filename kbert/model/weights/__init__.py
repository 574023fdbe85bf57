"""Reads and writes weights in four formats, each with a table of its weight names."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights import exported, google, huggingface, kerashub, native
from kbert.model.weights.head_removal import heads_text, with_all_heads, without_heads
from kbert.model.weights.layer_selection import chosen_layers, take_layers
from kbert.model.weights.tensors import (
    REQUIRED_PARTS,
    Tensors,
    listed,
    matches,
    part_of,
    weight_shapes,
)
from kbert.model.weights.vocabulary import new_rows, with_vocabulary
from kbert.utils.formats import FORMATS, WEIGHTS_FILES, find_folder, folder_format

__all__ = [
    "Tensors",
    "chosen_layers",
    "heads_text",
    "new_rows",
    "open_weights",
    "part_of",
    "without_heads",
    "write_weights",
]

# Each module has
#   opened(folder, parts): context manager that yields the config fields, the tensors, and a
#     function from a config to the `Place` of each weight; raises UserError if a file is missing or
#     damaged, or the architecture is not BERT. parts: as for `open_weights`.
#   places(config, parts): returns a dict of kbert's name -> Place. parts: the parts to write.
#   write(folder, config, tensors, parts): writes a model; returns notes on how the outputs of the
#     format's library differ; raises UserError if the format does not support the model.
_MODULES = {"kbert": native, "google": google, "hf": huggingface, "keras_hub": kerashub}
_MODULES["export"] = exported  # cannot be written


@contextlib.contextmanager
def open_weights(
    folder: str | os.PathLike[str],
    allow_missing: Sequence[str] = (),
    parts: Collection[str] = (),
    layers: int | Sequence[int] | None = None,
    new_entries: Callable[[int], Mapping[int, Sequence[int]]] | None = None,
    **changes: object,
) -> Iterator[tuple[BertConfig, Tensors]]:
    """Opens a model folder in any format; weights are read one at a time, on access.

    The shapes are checked against the config before any weight is read.

    Args:
        folder: as for `kbert.utils.formats.find_folder`.
        allow_missing: names or name prefixes, kbert's or the format's, optionally with `*`, of
            weights that may be missing, unknown or of another shape; they are not loaded.
        parts: the parts of the model to load, which identify the classifier of an HF folder whose
            config does not name it.
        layers: the encoder blocks to load; see `chosen_layers`. None for all.
        new_entries: function from the number of rows to the `pieces` of new vocabulary entries;
            see `with_vocabulary`.
        **changes: fields of BertConfig to override. A larger `vocab_size` adds rows.

    Yields:
        BertConfig, and Tensors of kbert's name -> float32 array. Except for `allow_missing`, each
        part is complete or absent.

    Raises:
        UserError: the folder does not exist, cannot be read or has another architecture; or weights
            are unknown, missing, or have other shapes than in the config.
    """
    folder = find_folder(folder)
    with _MODULES[folder_format(folder)].opened(folder, parts) as (fields, tensors, places_of):
        if "num_labels" in changes and changes["num_labels"] != fields.get("num_labels"):
            fields["label_names"] = None  # the names belong to the old labels
        pieces, vocab_size = _new_vocabulary(fields, changes, new_entries)
        try:
            config = BertConfig(**fields | changes)
            changes.pop("attention_heads_per_layer", None)
            saved_heads = BertConfig(**fields | changes).attention_heads_per_layer
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        heads = config.attention_heads_per_layer
        if heads != saved_heads:
            raise UserError(
                f"{folder}: a config cannot change the number of attention heads per block "
                f"({heads_text(saved_heads)}); got attention_heads_per_layer={heads}. To remove "
                f"heads: python -m kbert.prune"
            )
        if config.num_hidden_layers > len(tensors):
            raise UserError(
                f"{folder}: the config has {config.num_hidden_layers} layers, but there are only "
                f"{len(tensors)} tensors."
            )
        shapes, places = weight_shapes(config), places_of(config)
        names = _names_to_load(folder, tensors, places, allow_missing)
        weights = Tensors(
            {name: shapes[name] for name in names},
            lambda name: places[name].to_kbert(tensors[places[name].name], shapes[name]),
        )
        if vocab_size:
            config, weights = with_vocabulary(config, weights, vocab_size, pieces)
        yield (config, weights) if layers is None else take_layers(config, weights, layers)


def _new_vocabulary(fields, changes, new_entries):
    """Returns the pieces of new entries, and the new vocabulary size or None if unchanged.

    If `vocab_size` grows, it is removed from `changes`.
    """
    rows = fields.get("vocab_size", BertConfig.vocab_size)
    if type(rows) is not int:
        return {}, None  # raises an error later
    pieces = new_entries(rows) if new_entries else {}
    vocab_size = changes.get("vocab_size")
    if type(vocab_size) is int and vocab_size > rows:
        del changes["vocab_size"]
        return {id: ids for id, ids in pieces.items() if id < vocab_size}, vocab_size
    if vocab_size is None and pieces:
        return pieces, max(rows, *(id + 1 for id in pieces))
    return {}, None


def _names_to_load(folder, tensors, places, allow_missing):
    """Checks the tensors; returns kbert's names of the weights to load."""

    def allowed(name):
        external_name = places[name].name if name in places else name
        return matches(name, allow_missing) or matches(external_name, allow_missing)

    names = {place.name: name for name, place in places.items()}
    how = "To skip such weights: allow_missing=[...], --allow_missing=A,B*"
    unknown = [name for name in tensors if name not in names and not allowed(name)]
    if unknown:
        raise UserError(f"{folder} has tensors that BERT does not have: {listed(unknown)}. {how}")
    result = []
    for external_name, name in names.items():
        if external_name not in tensors:
            continue
        if tensors.shapes[external_name] == places[name].shape:
            result.append(name)
        elif not allowed(name):
            raise UserError(
                f"{folder}: {external_name} has the shape {tensors.shapes[external_name]}, but "
                f"the config requires {places[name].shape}. {how}"
            )
    parts = {part_of(name) for name in result} | set(REQUIRED_PARTS)
    absent = [name for name in places if part_of(name) in parts and name not in set(result)]
    missing = [places[name].name for name in absent if not allowed(name)]
    if missing:
        raise UserError(f"{folder} lacks {listed(missing)}. {how}")
    return result


def write_weights(
    folder: str | os.PathLike[str],
    format: str,
    config: BertConfig,
    weights: Tensors,
    allow_missing: Sequence[str] = (),
) -> list[str]:
    """Writes weights and config in a format.

    Args:
        folder: an existing folder; files of the same names are replaced.
        format: one of `kbert.utils.formats.FORMATS`.
        weights: dict of kbert's name -> float32 array.
        allow_missing: names or name prefixes of weights to omit if the format does not support
            them.

    Returns:
        notes on how the outputs of the format's library differ, and on removed heads, which all
        formats except kbert's store as zeros.

    Raises:
        UserError: the format is unknown or does not support some weights, or a file cannot be
            written.
    """
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}; got {format!r}.")
    folder = pathlib.Path(folder)
    present = [other for other, marks in WEIGHTS_FILES.items() if marks & set(os.listdir(folder))]
    if present not in ([], [format]):
        raise UserError(
            f"{folder} already has weights in the format {present[0]}. Use another folder: weights "
            f"in two formats would be ambiguous."
        )
    notes = []
    if config.attention_heads_per_layer and format != "kbert":
        config, weights = with_all_heads(config, weights)
        notes = [
            f"the format {format} does not support removed heads: they are written as zeros. The "
            f"outputs are the same, but the model is neither smaller nor faster."
        ]
    module, parts = _MODULES[format], {part_of(name) for name in weights}
    places = module.places(config, parts)
    unsupported = [name for name in weights if name not in places]
    lost = [name for name in unsupported if not matches(name, allow_missing)]
    if lost:
        raise UserError(
            f"the format {format} does not support {listed(lost)}. To omit them: "
            f"allow_missing=[...], --allow_missing={','.join(sorted({part_of(n) for n in lost}))}"
        )
    kbert_names = {places[name].name: name for name in weights if name in places}
    external_shapes = {place: places[name].shape for place, name in kbert_names.items()}

    def read(external_name):
        name = kbert_names[external_name]
        return places[name].from_kbert(weights[name])

    tensors = Tensors(external_shapes, read)
    kept = {part_of(name) for name in kbert_names.values()}
    return notes + module.write(folder, config, tensors, kept)
