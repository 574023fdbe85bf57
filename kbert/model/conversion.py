"""Converts model folders to another format."""

import math
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence

from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.model.weights import part_of, write_weights
from kbert.tokenizer.files import has_tokenizer, read_tokenizer, write_tokenizer
from kbert.utils import atomic, storage
from kbert.utils.locks import target_lock


def convert(
    model: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    format: str,
    allow_missing: Sequence[str] = (),
    lower_case: bool | None = None,
    report: Callable[[str], object] = print,
) -> None:
    """Writes the weights, the config and the tokenizer of a model folder in another format.

    Holds one weight at a time in memory or, for Google's format, up to 500 MB of weights, because
    TensorFlow writes a whole file at once. The output folder is written atomically.

    Args:
        model: folder, as for `BertModel.from_pretrained`.
        output_dir: folder to create; it may exist only if it is empty.
        format: one of `kbert.utils.formats.FORMATS`.
        allow_missing: as for `BertModel.from_pretrained` and `save_pretrained`; "tokenizer" to
            convert only the weights and the config.
        lower_case: as for `BertTokenizer.from_pretrained`.
        report: called with each line of text for the user.

    Raises:
        UserError: the format is unknown; the model or its tokenizer cannot be read; the output
            folder is not empty; or weights are unknown, missing, of another shape, or not supported
            by the format.
    """
    target, folder = pathlib.Path(output_dir), ModelFolder.of(model)
    storage.check_output_folder_is_free(target)
    with target_lock(target), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with folder.open_weights(allow_missing=allow_missing) as (config, weights):
            parameters = sum(math.prod(shape) for shape in weights.shapes.values())
            parts = ", ".join(sorted({part_of(name) for name in weights}))
            report(
                f"from {folder.path} ({folder.format}): {config.num_hidden_layers} layers, "
                f"width {config.hidden_size}, {parameters:,} parameters in {parts}"
            )
            with atomic.folder(target) as path:
                _write(folder, path, format, config, weights, allow_missing, lower_case, report)
    for warning in caught:
        report(f"note: {warning.message}")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    report(f"to {target} ({format}): {size / 1e6:,.1f} MB")


def _write(folder, path, format, config, weights, allow_missing, lower_case, report):
    if "tokenizer" in allow_missing:
        report("note: writing no tokenizer (--allow_missing=tokenizer)")
    elif has_tokenizer(folder.path):
        try:
            vocab, settings = read_tokenizer(folder.path, lower_case)
        except UserError as error:
            how = "To convert only the weights and the config: --allow_missing=tokenizer"
            raise UserError(f"{error} {how}") from error
        write_tokenizer(path, format, vocab, settings, config.max_position_embeddings)
        casing = "uncased" if settings["lower_case"] else "cased"
        report(f"vocabulary: {len(vocab):,} entries, {casing}")
    else:
        report(f"note: {folder.path} has no vocabulary; writing none")
    for note in write_weights(path, format, config, weights, allow_missing):
        report(f"note: {note}")
