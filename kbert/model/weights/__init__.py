"""Reads and writes weights in the formats of kbert, Google, HF and KerasHub; reads exports, too."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights import exported, google, huggingface, kerashub, native
from kbert.model.weights.head_removal import heads_text, remove_heads, restore_heads
from kbert.model.weights.layer_selection import resolve_layers, select_layers
from kbert.model.weights.tensors import (
    REQUIRED_PARTS,
    Tensors,
    abbreviate_names,
    matches,
    part_of,
    weight_shapes,
)
from kbert.model.weights.vocabulary import new_rows, resize_vocabulary
from kbert.utils.formats import FORMATS, WEIGHTS_FILES, find_folder, folder_format

__all__ = [
    "Tensors",
    "heads_text",
    "new_rows",
    "open_weights",
    "part_of",
    "remove_heads",
    "resolve_layers",
    "write_weights",
]

# Each module has
#   open_folder(folder, parts): context manager that yields `FolderContents`; raises UserError if a
#     file is missing or damaged, or the architecture is not BERT. parts: as for `open_weights`.
#   external_weights(config, parts): returns a dict of kbert's name -> ExternalWeight. parts: the
#     parts to write.
#   write(folder, config, tensors, parts): writes a model; returns notes on how it differs from the
#     model of the format's library; raises UserError if the format does not support the model.
_MODULES = {"kbert": native, "google": google, "hf": huggingface, "keras_hub": kerashub}
_MODULES["export"] = exported  # only `open_folder`: kbert.export writes this format


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

    The names and shapes of all weights are checked against the config first.

    Args:
        folder: as for `kbert.utils.formats.find_folder`.
        allow_missing: names or name prefixes of weights, as in kbert or in the format, optionally
            with `*`. Weights with such names may be missing; they are skipped if they are unknown
            or have another shape.
        parts: parts of the model that will be loaded. They decide which head the "classifier" of an
            HF folder is, if its config does not name a model class.
        layers: the encoder blocks to load; see `resolve_layers`. None for all.
        new_entries: function of the number of rows of the word embeddings; returns the `pieces` of
            the new vocabulary entries for `resize_vocabulary`. None to add no entries.
        **changes: fields of BertConfig to override. A larger `vocab_size` adds rows.

    Yields:
        BertConfig, and Tensors of kbert's name -> float32 array. Apart from the weights in
        `allow_missing`, the embeddings and the encoder are complete, and every other part is
        complete or absent.

    Raises:
        UserError: the folder does not exist, cannot be read or has another architecture; weights
            are unknown, missing, or have other shapes than in the config; or `layers` or `changes`
            are invalid.
    """
    folder = find_folder(folder)
    with _MODULES[folder_format(folder)].open_folder(folder, parts) as (
        fields,
        tensors,
        external_weights,
    ):
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
                f"{folder}: attention_heads_per_layer must match the weights "
                f"({heads_text(saved_heads)}); got {heads}. To remove heads: python -m kbert.prune"
            )
        if config.num_hidden_layers > len(tensors):
            raise UserError(
                f"{folder}: the config has {config.num_hidden_layers} layers, but there are only "
                f"{len(tensors)} tensors."
            )
        shapes, external = weight_shapes(config), external_weights(config)
        names = _names_to_load(folder, tensors, external, allow_missing)
        weights = Tensors(
            {name: shapes[name] for name in names},
            lambda name: external[name].to_kbert(tensors[external[name].name], shapes[name]),
        )
        if vocab_size:
            config, weights = resize_vocabulary(config, weights, vocab_size, pieces)
        yield (config, weights) if layers is None else select_layers(config, weights, layers)


def _new_vocabulary(fields, changes, new_entries):
    """Returns the `pieces` of the new entries, and the vocabulary's new size, or None if unchanged.

    If `vocab_size` in `changes` is larger than the folder's, it is removed from `changes`.
    """
    rows = fields.get("vocab_size", BertConfig.vocab_size)
    if type(rows) is not int:
        return {}, None  # BertConfig raises the error
    pieces = new_entries(rows) if new_entries else {}
    vocab_size = changes.get("vocab_size")
    if type(vocab_size) is int and vocab_size > rows:
        del changes["vocab_size"]
        return {id: ids for id, ids in pieces.items() if id < vocab_size}, vocab_size
    if vocab_size is None and pieces:
        return pieces, max(rows, *(id + 1 for id in pieces))
    return {}, None


def _names_to_load(folder, tensors, external, allow_missing):
    """Checks the tensors; returns kbert's names of the weights to load."""

    def is_allowed(name):
        external_name = external[name].name if name in external else name
        return matches(name, allow_missing) or matches(external_name, allow_missing)

    names = {weight.name: name for name, weight in external.items()}
    how = "To skip such weights: allow_missing=[...], --allow_missing=A,B*"
    unknown = [name for name in tensors if name not in names and not is_allowed(name)]
    if unknown:
        raise UserError(
            f"{folder} has tensors that BERT does not have: {abbreviate_names(unknown)}. {how}"
        )
    result = []
    for external_name, name in names.items():
        if external_name not in tensors:
            continue
        if tensors.shapes[external_name] == external[name].shape:
            result.append(name)
        elif not is_allowed(name):
            raise UserError(
                f"{folder}: {external_name} has the shape {tensors.shapes[external_name]}, but "
                f"the config requires {external[name].shape}. {how}"
            )
    parts = {part_of(name) for name in result} | set(REQUIRED_PARTS)
    absent = [name for name in external if part_of(name) in parts and name not in set(result)]
    missing = [external[name].name for name in absent if not is_allowed(name)]
    if missing:
        raise UserError(f"{folder} lacks {abbreviate_names(missing)}. {how}")
    return result


def write_weights(
    folder: str | os.PathLike[str],
    format: str,
    config: BertConfig,
    weights: Tensors,
    allow_missing: Sequence[str] = (),
) -> list[str]:
    """Writes the weights and the config of a model in one of `kbert.utils.formats.FORMATS`.

    Returns notes on differences from the model in the format's library, and on removed heads, which
    all formats but kbert's store as zeros.

    Args:
        folder: an existing folder; files of the same names are replaced.
        weights: dict of kbert's name -> float32 array.
        allow_missing: names or name prefixes of weights to omit if the format does not support
            them.

    Raises:
        UserError: the format is unknown or does not support some weights, the folder has weights in
            another format, or a checkpoint of Google's format cannot be written.
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
        config, weights = restore_heads(config, weights)
        notes = [
            f"the format {format} does not support removed heads: they are written as zeros. The "
            f"outputs are the same, but the model is neither smaller nor faster."
        ]
    module, parts = _MODULES[format], {part_of(name) for name in weights}
    external = module.external_weights(config, parts)
    unsupported = [name for name in weights if name not in external]
    lost = [name for name in unsupported if not matches(name, allow_missing)]
    if lost:
        raise UserError(
            f"the format {format} does not support {abbreviate_names(lost)}. To omit them: "
            f"allow_missing=[...], --allow_missing={','.join(sorted({part_of(n) for n in lost}))}"
        )
    kbert_names = {external[name].name: name for name in weights if name in external}
    external_shapes = {
        external_name: external[name].shape for external_name, name in kbert_names.items()
    }

    def read(external_name):
        name = kbert_names[external_name]
        return external[name].from_kbert(weights[name])

    tensors = Tensors(external_shapes, read)
    kept = {part_of(name) for name in kbert_names.values()}
    return notes + module.write(folder, config, tensors, kept)
