"""The BERT tokenizer, its files and its vocabulary.

`BertTokenizer` is imported on first use, because it needs TensorFlow and models on JAX do not.
"""

from typing import TYPE_CHECKING

from kbert.tokenizer.added_tokens import AddedToken
from kbert.tokenizer.vocab import extend_vocab, learn_vocab, read_vocab

if TYPE_CHECKING:
    from kbert.tokenizer.tokenizer import BertTokenizer

__all__ = ["AddedToken", "BertTokenizer", "extend_vocab", "learn_vocab", "read_vocab"]


def __getattr__(name: str) -> object:
    if name != "BertTokenizer":
        raise AttributeError(f"module 'kbert.tokenizer' has no attribute {name!r}")
    from kbert.tokenizer.tokenizer import BertTokenizer

    return BertTokenizer
