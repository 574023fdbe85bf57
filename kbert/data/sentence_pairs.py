"""Creates segment pairs for next-sentence prediction from a prepared corpus.

An epoch visits each window of at most T = max_seq_length - 3 tokens (the row has three special
tokens) once, in random order, and splits it into segments A and B at a random sentence end or, if
there is none, between two random tokens; see `kbert.data.document_windows`. In half of the
examples, text from another document replaces B.

Differences from `create_pretraining_data.py`, which reads the documents in order:

* Windows overlap: in every epoch a token lies in at least one window, and in 4/3 windows on average
  in long documents. (A document of one token has no window.) The original drops the tokens by which
  a chunk is too long. Here a token may be missed only because its window is shortened or its
  segment B is replaced; replacements show other tokens again. `views_per_token` estimates the
  average number of windows per token.
* The original reuses a replaced B in the next chunk. Here a later epoch may show it, because each
  epoch splits a window differently.
* Each B is replaced with probability 1/2. The original always replaces the B of a chunk of one
  sentence, which lets a model infer the label from the length; here such a window is split between
  two tokens.
* A replacement is always from another document; the original gives up after ten random draws.
"""

from typing import TYPE_CHECKING

import numpy as np

from kbert.data.document_windows import DocumentWindows, SentenceStarts, TokenRows, floor
from kbert.errors import UserError
from kbert.utils.stateless_random import uniform

if TYPE_CHECKING:
    from kbert.corpus.corpus import Corpus

_STREAM_PAIR = 1  # of kbert.utils.stateless_random


class PairSampler:
    """Cuts windows of a corpus into pairs of segments.

    Args:
        corpus: `kbert.corpus.Corpus`.
        max_seq_length: L; pairs have at most L - 3 tokens.
        short_seq_prob: fraction of the examples cut to a random length in [2, L - 3].
        seed: seed of the run.

    Attributes:
        windows: the windows of the corpus.
        count: number of examples per epoch.
    """

    def __init__(self, corpus: "Corpus", max_seq_length: int, short_seq_prob: float, seed: int):
        T = max_seq_length - 3
        # A document of one token cannot be split into two segments.
        self.windows: DocumentWindows = DocumentWindows(corpus.document_starts, T, min_tokens=2)
        self.count: int = self.windows.count
        if self.count == 0:
            raise UserError(
                "no document of the corpus has two tokens, so there are no sentence pairs. Prepare "
                "a corpus with longer documents."
            )
        self._sentences = SentenceStarts(corpus)
        self._corpus = corpus
        self._max_seq_length = max_seq_length
        self._short_seq_prob = short_seq_prob
        self._seed = seed

    def cut(
        self, index: np.ndarray, epoch: np.ndarray, slots: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the segments of examples.

        Args:
            index: (B,) number of each example in the run, which seeds its random numbers.
            epoch: (B,) epoch of each example, which seeds the positions of the windows.
            slots: (B,) number of the window of each example.

        Returns:
            Spans [first, stop) of segments A and B, in tokens from the start of the corpus, (B, 2)
            int64 each, and (B,) bool, whether segment B follows A.
        """
        documents, first, last = self.windows.locate(slots, epoch, self._seed)
        short, short_length, split, swap, place = uniform(self._seed, _STREAM_PAIR, index, 5).T
        T, starts = self.windows.length, self._corpus.document_starts
        start = self._sentences.last(first, last)
        length = np.minimum(T, starts[documents + 1] - start)
        cut = np.minimum(length, 2 + floor(short_length * (T - 1)))
        length = np.where(short < self._short_seq_prob, cut, length)
        stop = start + length
        middle, at_sentence = self._sentences.inside(start, stop, split)
        middle = np.where(at_sentence, middle, start + 1 + floor(split * (length - 1)))
        b = np.stack([middle, stop], axis=1)
        swapped = np.flatnonzero(swap < 0.5)
        b[swapped] = self._replacement_spans(
            documents[swapped], (stop - middle)[swapped], place[swapped], at_sentence[swapped]
        )
        return np.stack([start, middle], axis=1), b, swap >= 0.5

    def rows(self, index: np.ndarray, epoch: np.ndarray, slots: np.ndarray) -> TokenRows:
        """Returns the rows [CLS] A [SEP] B [SEP] of examples; args as for `cut`."""
        (a, b, is_next), places = self.cut(index, epoch, slots), np.arange(self._max_seq_length)
        end = a[:, 1:] - a[:, :1] + 1  # (B, 1), position of the first [SEP]
        lengths = end + 2 + b[:, 1:] - b[:, :1]
        real = places < lengths  # (B, L)
        is_cls = real & (places == 0)
        is_sep = (places == end) | (places == lengths - 1)
        features = {
            "token_type_ids": (real & (places > end)).astype(np.int32),
            "next_sentence_labels": (~is_next).astype(np.int32),
        }
        spans = np.stack([a, b], 1).reshape(-1, 2)
        return TokenRows(spans, real & ~is_cls & ~is_sep, is_cls, is_sep, features)

    def views_per_token(self) -> float:
        """Estimates the mean number of windows of an epoch that contain a token."""
        return self.windows.views_per_token(self._short_seq_prob)

    def _replacement_spans(self, documents, lengths, draws, at_sentence):
        """Returns random (N, 2) spans of `lengths` tokens in other documents.

        The document and the place in it are drawn uniformly over all tokens of other documents.

        A span starts at a sentence start if the B that it replaces does, so that its start does not
        reveal the label. It is shorter than `lengths` only if its whole document is shorter.
        """
        starts = self._corpus.document_starts
        begin, size = starts[documents], starts[documents + 1] - starts[documents]
        place = floor(draws * (self._corpus.tokens - size))
        place = np.where(place >= begin, place + size, place)
        other = np.searchsorted(starts, place, side="right") - 1
        begin, end = starts[other], starts[other + 1]
        place = np.maximum(begin, np.minimum(place, end - lengths))
        place = np.where(at_sentence, self._sentences.last(begin, place), place)
        return np.stack([place, np.minimum(place + lengths, end)], axis=1)
