"""The BERT tokenizer, its files and its vocabulary."""

from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.tokenizer.vocab import learn_vocab, read_vocab

__all__ = ["BertTokenizer", "learn_vocab", "read_vocab"]
