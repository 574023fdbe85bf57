"""Prepared corpora: text is tokenized once, written as shards of ids, and memory-mapped."""

from kbert.corpus.corpus import Corpus

__all__ = ["Corpus", "prepare"]


def __getattr__(name):
    if name != "prepare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kbert.corpus.preparation import prepare  # imports TensorFlow

    return prepare
