"""Converts a BERT: python -m kbert.convert --model=google_folder --output_dir=hf --format=hf"""

from absl import flags as absl_flags

from kbert.errors import UserError
from kbert.utils import program
from kbert.utils.formats import FORMATS, find_folder


def _define_flags() -> None:
    """Defines the flags; not done on import, because programs share names of flags."""
    absl_flags.DEFINE_string(
        "model",
        None,
        "folder of weights in any format, or the name of a model on the Hugging Face hub",
    )
    absl_flags.DEFINE_string("output_dir", None, "folder to create")
    absl_flags.DEFINE_enum("format", "kbert", list(FORMATS), "format to write")
    absl_flags.DEFINE_list(
        "allow_missing",
        [],
        "comma-separated names or name prefixes of weights that may be missing, unknown, of "
        "another shape or not supported by --format; * matches any text; the name tokenizer: do "
        "not convert the tokenizer",
    )
    absl_flags.DEFINE_bool(
        "lower_case",
        None,
        "whether the tokenizer lower-cases text; default: the folder's setting, else inferred from "
        "its vocabulary",
    )


def check() -> None:
    """Checks the flags before TensorFlow is imported."""
    for name in ("model", "output_dir"):
        if not absl_flags.FLAGS[name].value:
            raise UserError(
                f"--{name} is missing: python -m kbert.convert --model=A --output_dir=B"
            )
    find_folder(absl_flags.FLAGS.model)


def main() -> None:
    """Runs `kbert.model.conversion.convert` with the flags."""
    from kbert.model.conversion import convert

    flags = absl_flags.FLAGS
    convert(flags.model, flags.output_dir, flags.format, flags.allow_missing, flags.lower_case)


if __name__ == "__main__":
    _define_flags()
    program.run(main, check=check)
