"""The BERT tokenizer, its files and its vocabulary."""

from kbert.tokenizer.added_tokens import AddedToken
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import extend_vocab, learn_vocab, read_vocab

__all__ = ["AddedToken", "BertTokenizer", "extend_vocab", "learn_vocab", "read_vocab"]
