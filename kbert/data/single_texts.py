"""Creates rows of single texts, [CLS] text [SEP], for masked language modeling without NSP.

A text is a window of at most T = max_seq_length - 2 consecutive tokens of one document; see
`kbert.data.document_windows`.
"""

from typing import TYPE_CHECKING

import numpy as np

from kbert.data.document_windows import DocumentWindows, SentenceStarts, TokenRows, floor
from kbert.utils.stateless_random import uniform

if TYPE_CHECKING:
    from kbert.corpus.corpus import Corpus

_STREAM_TEXT = 1  # of kbert.utils.stateless_random; sentence pairs use it in their runs


class TextCutter:
    """Cuts texts from windows of a corpus.

    Args:
        corpus: `kbert.corpus.Corpus`.
        max_seq_length: L; texts have at most L - 2 tokens.
        short_seq_prob: share of the texts cut to a random length in [1, L - 2].
        seed: int.

    Attributes:
        count: number of examples per epoch.
    """

    def __init__(self, corpus: "Corpus", max_seq_length: int, short_seq_prob: float, seed: int):
        self._windows = DocumentWindows(corpus.document_starts, max_seq_length - 2, least=1)
        self.count: int = self._windows.count
        self._sentences = SentenceStarts(corpus)
        self._corpus = corpus
        self._max_seq_length = max_seq_length
        self._short_seq_prob = short_seq_prob
        self._seed = seed

    def rows(self, index: np.ndarray, epoch: np.ndarray, slots: np.ndarray) -> TokenRows:
        """Returns the rows of examples.

        Args:
            index: (B,) number of the example in the run, from which all random numbers derive.
            epoch: (B,). slots: (B,) window of each.
        """
        documents, first, last = self._windows.locate(slots, epoch, self._seed)
        short, short_length = uniform(self._seed, _STREAM_TEXT, index, 2).T
        T, places = self._windows.length, np.arange(self._max_seq_length)
        start = self._sentences.last(first, last)
        length = np.minimum(T, self._corpus.document_starts[documents + 1] - start)
        cut = np.minimum(length, 1 + floor(short_length * T))
        length = np.where(short < self._short_seq_prob, cut, length)[:, None]  # (B, 1)
        is_text = (places > 0) & (places <= length)  # (B, L)
        is_cls = np.broadcast_to(places == 0, is_text.shape)
        features = {"token_type_ids": np.zeros(is_text.shape, np.int32)}
        spans = start[:, None] + np.pad(length, ((0, 0), (1, 0)))
        return TokenRows(spans, is_text, is_cls, places == length + 1, features)

    def views_per_token(self) -> float:
        """Returns the average number of times that a window shows a token per epoch."""
        return self._windows.views_per_token(self._short_seq_prob)
