"""From text to batches: vocabulary, tokenizer, prepared corpus, NSP pairs, MLM masks."""

from kbert.data.preparation import prepare
from kbert.data.pretraining import pretraining_dataset
from kbert.data.store import Corpus
from kbert.data.tokenizer import BertTokenizer
from kbert.data.vocab import learn_vocab, read_vocab

__all__ = [
    "BertTokenizer",
    "Corpus",
    "learn_vocab",
    "prepare",
    "pretraining_dataset",
    "read_vocab",
]
