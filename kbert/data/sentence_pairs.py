"""Creates segment pairs for next-sentence prediction from a prepared corpus.

Every document is covered by overlapping windows of T = max_seq_length - 3 tokens, because
[CLS] and [SEP] take 3. An epoch visits each window once, in random order, and splits it at a random
sentence end into segments A and B. For half of the examples B is replaced by text from another
document. Windows start where a sentence starts, if one does within T/4 tokens, and move from epoch
to epoch. Differences from `create_pretraining_data.py`, which reads the documents in order:

* A window that cuts a sentence leaves it to the next window too, where the original drops the rest
  of the chunk: every token lies in at least one window of every epoch, 4/3 on the average of long
  documents. It is seen where its window is not made short and its B is not replaced; other tokens
  come as replacements. `Windows.views_per_token` tells how often that makes.
* The original reuses a replaced B in the next chunk; here a later epoch, split differently, does.
* Each B is replaced with probability 1/2, whatever the window. The original also replaces the B of
  every chunk of one sentence, which lets a model answer from the length; here such a window is cut
  between two tokens.
* A replacement is always from another document; the original gives up after ten random draws.
"""

import dataclasses

import numpy as np

from kbert.errors import UserError
from kbert.utils.stateless_random import uniform

_STREAM_SHIFT, _STREAM_PAIR = 0, 1  # streams of kbert.utils.stateless_random


class PairWindows:
    """The windows of T tokens over all documents of a corpus.

    A document of d <= T tokens is one window. A longer one has one at its start and others behind
    it, whose bodies of T - T//4 tokens tile the rest; a window may start up to T//4 tokens before
    its body, to begin with a sentence.

    Attributes:
        count: windows, hence examples in an epoch.

    Raises:
        UserError: no document has two tokens.
    """

    def __init__(self, document_starts, length):
        """Args: document_starts (documents + 1,) int64. length: T, at least 2."""
        self.length = T = length
        self.slack = T // 4
        self.body = T - self.slack
        self._starts = document_starts
        self._sizes = sizes = np.diff(document_starts)
        extra = -(-np.maximum(sizes - T, 0) // self.body)  # ceil
        self._ends = np.cumsum(np.where(sizes < 2, 0, 1 + extra))  # one token cannot be cut in two
        self.count = int(self._ends[-1])
        if self.count == 0:
            raise UserError("no document of the corpus has two tokens; there is nothing to learn.")

    def locate(self, slots, epoch, seed):
        """Where windows lie in an epoch.

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
        spare = self.length + (windows - 1) * self.body - size  # tokens that the bodies could move
        index = epoch * len(self._sizes) + document
        shift = uniform(seed, _STREAM_SHIFT, index, 1)[:, 0]
        shift = (shift * (np.maximum(spare, 0) + 1)).astype(np.int64)
        body = self.length + (k - 1) * self.body - shift
        body = np.where(k == 0, 0, np.minimum(body, size - self.body))
        first = np.where(k == 0, 0, body - self.slack)
        return document, self._starts[document] + first, self._starts[document] + body

    def views_per_token(self, short_seq_prob):
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
    """Where the segments of B examples lie, counted from the start of the corpus.

    a, b: (B, 2) first token, and token after the last. is_next: (B,) bool, B follows A.
    """

    a: np.ndarray
    b: np.ndarray
    is_next: np.ndarray


class PairCutter:
    """Cuts windows of a corpus into pairs of segments.

    Args:
        corpus: `kbert.corpus.Corpus`, of at least two documents.
        max_seq_length: L; pairs have at most L - 3 tokens.
        short_seq_prob: share of the examples cut down to a random length of [2, L - 3].
        seed: int.
    """

    def __init__(self, corpus, max_seq_length, short_seq_prob, seed):
        self.windows = PairWindows(corpus.document_starts, max_seq_length - 3)
        self._corpus = corpus
        self._short_seq_prob = short_seq_prob
        self._seed = seed

    def cut(self, index, epoch, slots):
        """Returns the Pairs of examples.

        Args:
            index: (B,) number of the example in the run; all that is random depends on it.
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
        """Spans of `lengths` tokens of other documents, all their tokens equally likely: (N, 2).

        A span starts where a sentence starts if the B that it replaces does, so that its beginning
        tells nothing, and is shorter only if its whole document is.
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
        """A sentence start of each (start, stop), all equally likely; and where there is one."""
        result, there = np.empty_like(start), np.empty(len(start), bool)
        for sentences, offset, rows in self._by_shard(start):
            low = np.searchsorted(sentences, start[rows] - offset, side="right")
            count = np.searchsorted(sentences, stop[rows] - offset, side="left") - low
            there[rows] = count > 0
            chosen = np.minimum(low + _floor(draw[rows] * count), len(sentences) - 1)
            result[rows] = sentences[chosen] + offset
        return result, there

    def _by_shard(self, places):
        """For each shard that tokens lie in: its sentence starts, its own start, which of them."""
        starts = self._corpus.shard_starts
        shards = np.searchsorted(starts, places, side="right") - 1
        for shard in np.unique(shards):
            yield self._corpus.shards[shard].sentences, starts[shard], shards == shard


def _floor(x):
    return x.astype(np.int64)  # x is not negative
