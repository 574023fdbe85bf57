"""Runs a program of kbert: python -m kbert PROGRAM, or kbert PROGRAM"""

import difflib
import pathlib
import runpy
import sys

from kbert import __version__

PROGRAMS = {
    "learn_vocab": "learn a WordPiece vocabulary from text",
    "prepare": "tokenize text into a corpus for pretraining",
    "pretrain": "pretrain a BERT on text or a prepared corpus",
    "finetune": "fine-tune a BERT for a task on labeled examples",
    "evaluate": "score a fine-tuned BERT on labeled examples",
    "predict": "predict labels, entities, answers, masked words or vectors",
    "export": "export a SavedModel for TensorFlow Serving, TF Hub or another runtime",
    "serve": "serve exports by gRPC and REST on one machine, with a demo page",
    "convert": "convert weights between kbert, Google, Hugging Face and KerasHub",
    "distill": "train a smaller BERT from a fine-tuned one",
    "mine": "find hard negatives for pairs of similar texts",
    "prune": "remove the attention heads that matter least to a task",
    "attention": "show the attention weights of a text",
}


def usage() -> str:
    """Returns the help text of the command."""
    programs = "".join(f"  {name:<13}{purpose}\n" for name, purpose in PROGRAMS.items())
    return (
        "BERT on TensorFlow and Keras 3, from plain text to a served model.\n\n"
        f"usage: kbert PROGRAM [--flag=value ...]\n\nprograms:\n{programs}\n"
        "kbert PROGRAM --help lists the flags of a program; python -m kbert.PROGRAM also runs it.\n"
        "kbert --files prints the folder with the configs/ and export/ that come with kbert.\n"
    )


def main() -> None:
    """Runs the program named by the first argument."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage(), end="")
    elif name == "--version":
        print(f"kbert {__version__}")
    elif name == "--files":
        print(pathlib.Path(__file__).parent / "packaged")
    elif name in PROGRAMS:
        sys.argv[1:] = arguments
        runpy.run_module(f"kbert.{name}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, PROGRAMS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        print(
            f"error: there is no program {name!r}. {hint}The programs are {', '.join(PROGRAMS)}.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
