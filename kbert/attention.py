"""Plots attention weights: python -m kbert.attention --model=FOLDER --text="A text."

It writes `attention.png`, a plot, and `attention.html`, an interactive page of all heads.
"""

import pathlib

from absl import flags as absl_flags

from kbert.errors import UserError
from kbert.utils import program
from kbert.utils.formats import find_folder


def check() -> None:
    """Checks the flags before TensorFlow is imported."""
    for name in ("model", "text"):
        if absl_flags.FLAGS[name].value is None:
            raise UserError(
                f'--{name} is missing: python -m kbert.attention --model=FOLDER --text="A text."'
            )
    find_folder(absl_flags.FLAGS.model)


def main() -> None:
    """Runs `attention_weights` and `write_attention` with the flags."""
    from kbert.model.folder import ModelFolder
    from kbert.tokenizer.tokenizer import BertTokenizer
    from kbert.visualization.attention import attention_weights, write_attention

    flags = absl_flags.FLAGS
    folder = ModelFolder(flags.model)
    tokenizer = BertTokenizer.from_pretrained(folder, special_tokens_in_text=True)
    tokens, weights = attention_weights(folder, tokenizer, flags.text, flags.text_pair)
    name = pathlib.Path(flags.model).name
    write_attention(flags.output_dir, tokens, weights, flags.layer, flags.head, name)


def _define_flags() -> None:
    """Defines the flags; not done on import, because programs share names of flags."""
    absl_flags.DEFINE_string(
        "model",
        None,
        "folder of weights in any format, or the name of a model on the Hugging Face hub",
    )
    absl_flags.DEFINE_string("text", None, "text to analyze; it may contain tokens like [MASK]")
    absl_flags.DEFINE_string("text_pair", None, "second text of a pair")
    absl_flags.DEFINE_string("layer", "all", "layer to plot: all, or a number from 0")
    absl_flags.DEFINE_string("head", "all", "head to plot: all, mean, or a number from 0")
    absl_flags.DEFINE_string(
        "output_dir", "attention", "folder for attention.png and attention.html"
    )


if __name__ == "__main__":
    _define_flags()
    program.run(main, check=check)
