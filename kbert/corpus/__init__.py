"""Prepared corpora: text is tokenized once, written as shards of ids, and memory-mapped."""

from kbert.corpus.corpus import Corpus
from kbert.corpus.preparation import prepare

__all__ = ["Corpus", "prepare"]
