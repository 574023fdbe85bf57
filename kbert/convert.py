"""Converts a BERT: python -m kbert.convert --model=google_folder --output_dir=hf --format=hf"""

import math
import pathlib
import warnings

from absl import flags as absl_flags

from kbert.errors import UserError
from kbert.utils import program
from kbert.utils.formats import FORMATS, find_folder, folder_format
from kbert.utils.locks import target_lock


def convert(source, target, format, allow_missing=(), lower_case=None, report=print):
    """Writes the weights, the config and the tokenizer of a folder in another format.

    One weight at a time is in memory; for Google's format half a gigabyte of them, since TensorFlow
    writes a file at once. The folder is made whole or not at all.

    Args:
        source: as for `BertModel.from_pretrained`.
        target: folder to make; must not exist, or be empty.
        format: one of `kbert.utils.formats.FORMATS`.
        allow_missing: as for `BertModel.from_pretrained` and `save_pretrained`; "tokenizer" to
            convert the weights alone.
        lower_case: as for `BertTokenizer.from_pretrained`.
        report: called with a line of text.

    Raises:
        UserError: a folder that cannot be read or is not empty; weights that are unknown, missing,
            of another shape, or have no place in the format.
    """
    from kbert.model.weights import open_weights, part_of
    from kbert.utils import atomic, storage

    target, folder = pathlib.Path(target), find_folder(source)
    storage.check_free(target)
    with target_lock(target, "--output_dir"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with open_weights(folder, allow_missing) as (config, weights):
            parameters = sum(math.prod(shape) for shape in weights.shapes.values())
            parts = ", ".join(sorted({part_of(name) for name in weights}))
            report(
                f"from {folder} ({folder_format(folder)}): {config.num_hidden_layers} layers, "
                f"width {config.hidden_size}, {parameters:,} parameters in {parts}"
            )
            with atomic.folder(target) as path:
                _write(folder, path, format, config, weights, allow_missing, lower_case, report)
    for warning in caught:
        report(f"note: {warning.message}")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    report(f"to {target} ({format}): {size / 1e6:,.1f} MB")


def _write(folder, path, format, config, weights, allow_missing, lower_case, report):
    from kbert.model.weights import write_weights
    from kbert.tokenizer.files import has_tokenizer, read_tokenizer, write_tokenizer

    if "tokenizer" in allow_missing:
        report("note: no tokenizer is written, as asked")
    elif has_tokenizer(folder):
        try:
            vocab, settings = read_tokenizer(folder, lower_case)
        except UserError as error:
            how = "To convert the weights alone: --allow_missing=tokenizer"
            raise UserError(f"{error} {how}") from error
        if len(vocab) > config.vocab_size:
            raise UserError(
                f"{folder}: the vocabulary has {len(vocab):,} entries, and the config says "
                f"vocab_size {config.vocab_size:,}."
            )
        write_tokenizer(path, format, vocab, settings, config.max_position_embeddings)
        casing = "uncased" if settings["lower_case"] else "cased"
        report(f"vocabulary: {len(vocab):,} entries, {casing}")
    else:
        report(f"note: {folder} has no vocabulary, so none is written")
    for note in write_weights(path, format, config, weights, allow_missing):
        report(f"note: {note}")


def define_flags():
    """Defines the flags; not on import, since programs share names."""
    absl_flags.DEFINE_string(
        "model",
        None,
        "folder of weights in any format, or the name of a model on the Hugging Face hub",
    )
    absl_flags.DEFINE_string("output_dir", None, "folder to make")
    absl_flags.DEFINE_enum("format", "kbert", list(FORMATS), "format to write")
    absl_flags.DEFINE_list(
        "allow_missing",
        [],
        "names, or starts of names, of weights that may be unknown or missing, or be left out "
        "where the format has no place for them; with *; tokenizer for the weights alone",
    )
    absl_flags.DEFINE_bool(
        "lower_case",
        None,
        "casing of the tokenizer; default: as the folder says, or its words show",
    )


def main():
    """Runs `convert` with the flags."""
    values = {name: absl_flags.FLAGS[name].value for name in ("model", "output_dir", "format")}
    for name in ("model", "output_dir"):
        if not values[name]:
            raise UserError(
                f"--{name} is missing: python -m kbert.convert --model=A --output_dir=B"
            )
    flags = absl_flags.FLAGS
    convert(*values.values(), flags.allow_missing, flags.lower_case)


if __name__ == "__main__":
    define_flags()
    program.run(main)
