"""Prepared corpora: text is tokenized once, written as shards of ids, and memory-mapped."""

from typing import TYPE_CHECKING

from kbert.corpus.corpus import Corpus

if TYPE_CHECKING:
    from kbert.corpus.preparation import prepare

__all__ = ["Corpus", "prepare"]


def __getattr__(name: str) -> object:
    if name != "prepare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kbert.corpus.preparation import prepare  # imports TensorFlow

    return prepare
