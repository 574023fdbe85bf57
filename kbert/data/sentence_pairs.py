"""Creates segment pairs for next-sentence prediction from a prepared corpus.

Every document is covered by overlapping windows of T = max_seq_length - 3 tokens ([CLS] and two
[SEP] take 3). An epoch visits each window once, in random order, and splits it at a random
sentence end into segments A and B. For half of the examples B is replaced by text from another
document. Windows start where a sentence starts, if one does within T/4 tokens, and move from epoch
to epoch. Differences from `create_pretraining_data.py`, which reads the documents in order:

* A sentence that is cut by a window is also in the next window, whereas the original drops the rest
  of the chunk: every token lies in at least one window of every epoch, in 4/3 windows on average in
  long documents. A token is not seen if its window is shortened or its B is replaced; other tokens
  are seen as replacements. `PairWindows.views_per_token` computes the average number of views.
* The original reuses a replaced B in the next chunk; here a later epoch uses it, since it splits
  the window differently.
* Each B is replaced with probability 1/2, for any window. The original also replaces the B of every
  chunk of one sentence, which lets a model infer the label from the length; here such a window is
  split between two tokens.
* A replacement is always from another document; the original gives up after ten random draws.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from kbert.errors import UserError
from kbert.utils.stateless_random import uniform

if TYPE_CHECKING:
    from kbert.corpus.corpus import Corpus

_STREAM_SHIFT, _STREAM_PAIR = 0, 1  # streams of kbert.utils.stateless_random


class PairWindows:
    """The windows of T tokens over all documents of a corpus.

    A document of d <= T tokens is one window. A longer document has one window at its start. The
    rest is tiled by the bodies of further windows, T - T//4 tokens each. Such a window may start up
    to T//4 tokens before its body so that it begins at a sentence start.

    Attributes:
        count: int, number of windows, which is the number of examples per epoch.

    Raises:
        UserError: no document has two tokens.
    """

    def __init__(self, document_starts: np.ndarray, length: int):
        """Args: document_starts (documents + 1,) int64. length: T, at least 2."""
        self.length = T = length
        self.slack: int = T // 4
        self.body: int = T - self.slack
        self._starts = document_starts
        self._sizes = sizes = np.diff(document_starts)
        extra = -(-np.maximum(sizes - T, 0) // self.body)  # ceil
        self._ends = np.cumsum(np.where(sizes < 2, 0, 1 + extra))  # one token cannot be cut in two
        self.count: int = int(self._ends[-1])
        if self.count == 0:
            raise UserError(
                "no document of the corpus has two tokens, so there are no sentence pairs. Prepare "
                "a corpus with longer documents."
            )

    def locate(
        self, slots: np.ndarray, epoch: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the positions of windows in an epoch.

        Args:
            slots: (B,) numbers of windows. epoch: (B,). seed: int.

        Returns:
            document (B,), first (B,) and last (B,): the window may start at any token of
            [first, last], counted from the start of the corpus.
        """
        document = np.searchsorted(self._ends, slots, side="right")
        size = self._sizes[document]
        begins = np.where(document > 0, self._ends[document - 1], 0)
        windows, k = self._ends[document] - begins, slots - begins
        spare = self.length + (windows - 1) * self.body - size  # tokens by which bodies can move
        index = epoch * len(self._sizes) + document
        shift = uniform(seed, _STREAM_SHIFT, index, 1)[:, 0]
        shift = (shift * (np.maximum(spare, 0) + 1)).astype(np.int64)
        body = self.length + (k - 1) * self.body - shift
        body = np.where(k == 0, 0, np.minimum(body, size - self.body))
        first = np.where(k == 0, 0, body - self.slack)
        return document, self._starts[document] + first, self._starts[document] + body

    def views_per_token(self, short_seq_prob: float) -> float:
        """Returns the average number of times a token is seen per epoch."""
        T = self.length
        sizes = self._sizes[self._sizes >= 2]
        targets = np.arange(2, T + 1)
        first = np.minimum(sizes, T)
        # Mean of min(window, random target) for each possible window, then over the windows.
        cut = np.minimum(np.arange(T + 1)[:, None], targets).mean(axis=1)
        seen = (1 - short_seq_prob) * first + short_seq_prob * cut[first]
        full = (1 - short_seq_prob) * T + short_seq_prob * cut[T]
        total = seen.sum() + (self.count - len(sizes)) * full
        return float(total / self._sizes.sum())


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The positions of the segments of B examples, in tokens from the start of the corpus.

    a, b: (B, 2), the first token and the one after the last. is_next: (B,) bool, B follows A.
    """

    a: np.ndarray
    b: np.ndarray
    is_next: np.ndarray


class PairCutter:
    """Cuts windows of a corpus into pairs of segments.

    Args:
        corpus: `kbert.corpus.Corpus` with at least two documents.
        max_seq_length: L; pairs have at most L - 3 tokens.
        short_seq_prob: share of the examples cut to a random length in [2, L - 3].
        seed: int.
    """

    def __init__(self, corpus: "Corpus", max_seq_length: int, short_seq_prob: float, seed: int):
        self.windows: PairWindows = PairWindows(corpus.document_starts, max_seq_length - 3)
        self._corpus = corpus
        self._short_seq_prob = short_seq_prob
        self._seed = seed

    def cut(self, index: np.ndarray, epoch: np.ndarray, slots: np.ndarray) -> Pairs:
        """Returns the Pairs of examples.

        Args:
            index: (B,) number of the example in the run, from which all random numbers derive.
            epoch: (B,). slots: (B,) window of each.
        """
        documents, first, last = self.windows.locate(slots, epoch, self._seed)
        short, short_length, split, swap, place = uniform(self._seed, _STREAM_PAIR, index, 5).T
        T, starts = self.windows.length, self._corpus.document_starts
        start = self._last_sentence(first, last)
        length = np.minimum(T, starts[documents + 1] - start)
        cut = np.minimum(length, 2 + _floor(short_length * (T - 1)))
        length = np.where(short < self._short_seq_prob, cut, length)
        stop = start + length
        middle, at_sentence = self._sentence_inside(start, stop, split)
        middle = np.where(at_sentence, middle, start + 1 + _floor(split * (length - 1)))
        b = np.stack([middle, stop], axis=1)
        swapped = np.flatnonzero(swap < 0.5)
        b[swapped] = self._elsewhere(
            documents[swapped], (stop - middle)[swapped], place[swapped], at_sentence[swapped]
        )
        return Pairs(np.stack([start, middle], axis=1), b, swap >= 0.5)

    def _elsewhere(self, documents, lengths, draws, at_sentence):
        """Spans of `lengths` tokens in other documents, each token equally likely: (N, 2).

        A span starts at a sentence start if the B that it replaces does, so that its start does not
        reveal the label. It is shorter than `lengths` only if its whole document is shorter.
        """
        starts = self._corpus.document_starts
        begin, size = starts[documents], starts[documents + 1] - starts[documents]
        place = _floor(draws * (self._corpus.tokens - size))
        place = np.where(place >= begin, place + size, place)
        other = np.searchsorted(starts, place, side="right") - 1
        begin, end = starts[other], starts[other + 1]
        place = np.maximum(begin, np.minimum(place, end - lengths))
        place = np.where(at_sentence, self._last_sentence(begin, place), place)
        return np.stack([place, np.minimum(place + lengths, end)], axis=1)

    def _last_sentence(self, low, high):
        """Returns the last sentence start in [low, high], or low if there is none; (N,) each."""
        result = np.empty_like(high)
        for sentences, offset, rows in self._by_shard(high):
            i = np.searchsorted(sentences, high[rows] - offset, side="right") - 1
            result[rows] = sentences[i] + offset
        return np.where(result >= low, result, low)

    def _sentence_inside(self, start, stop, draw):
        """A random sentence start in each (start, stop), and whether there is one; (N,) each."""
        result, there = np.empty_like(start), np.empty(len(start), bool)
        for sentences, offset, rows in self._by_shard(start):
            low = np.searchsorted(sentences, start[rows] - offset, side="right")
            count = np.searchsorted(sentences, stop[rows] - offset, side="left") - low
            there[rows] = count > 0
            chosen = np.minimum(low + _floor(draw[rows] * count), len(sentences) - 1)
            result[rows] = sentences[chosen] + offset
        return result, there

    def _by_shard(self, places):
        """Yields for each shard in use its sentence starts, its start and a mask of its tokens."""
        starts = self._corpus.shard_starts
        shards = np.searchsorted(starts, places, side="right") - 1
        for shard in np.unique(shards):
            yield self._corpus.shards[shard].sentences, starts[shard], shards == shard


def _floor(x):
    return x.astype(np.int64)  # x is not negative
