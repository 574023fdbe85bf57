"""Pairs of segments for next-sentence prediction, cut out of a prepared corpus.

Every document is covered by overlapping windows of T = max_seq_length - 3 tokens, the room that
[CLS] and two [SEP] leave. An epoch visits each window once, in random order, and cuts it in two at
a random sentence end: segments A and B. For half of the examples B is replaced by text from another
document. Windows start where a sentence starts, if one does within T/4 tokens, and move from epoch
to epoch. Against `create_pretraining_data.py`, which walks the documents in order:

* A window that cuts a sentence leaves it to the next window too, where the original drops the rest
  of the chunk: every token lies in at least one window of every epoch, 4/3 on the average of long
  documents. It is seen where its window is not made short and its B is not replaced; other tokens
  come as replacements. `Windows.views_per_token` tells how often that makes.
* The original puts the unused B back in line; here the next epoch, cut elsewhere, brings it.
* Each B is replaced with probability 1/2, whatever the window. The original also replaces the B of
  every chunk of one sentence, which lets a model answer from the length; here such a window is cut
  between two tokens.
* Another document means another: the original tries ten times and then takes what it has.
"""

import dataclasses

import numpy as np

from kbert.data.draws import uniform
from kbert.errors import UserError

_STREAM_SHIFT, _STREAM_PAIR = 0, 1  # streams of kbert.data.draws


class Windows:
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
        """How often a token is seen in an epoch, on the average: tokens read / tokens there are."""
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
class Pair:
    """Where the two segments of an example lie: (first token, token after the last), global."""

    a: tuple[int, int]
    b: tuple[int, int]
    is_next: bool


class PairCutter:
    """Cuts windows of a corpus into pairs of segments.

    Args:
        corpus: `kbert.data.Corpus`, of at least two documents.
        max_seq_length: L; pairs have at most L - 3 tokens.
        short_seq_prob: share of the examples cut down to a random length of [2, L - 3].
        seed: int.
    """

    def __init__(self, corpus, max_seq_length, short_seq_prob, seed):
        self.windows = Windows(corpus.document_starts, max_seq_length - 3)
        self._corpus = corpus
        self._short_seq_prob = short_seq_prob
        self._seed = seed

    def cut(self, index, epoch, slots):
        """The pairs of examples.

        Args:
            index: (B,) number of the example in the run; all that is random depends on it.
            epoch: (B,). slots: (B,) window of each.

        Returns:
            list of Pair.
        """
        documents, first, last = self.windows.locate(slots, epoch, self._seed)
        draws = uniform(self._seed, _STREAM_PAIR, index, 5)
        return [self._cut(*row) for row in zip(documents, first, last, draws, strict=True)]

    def _cut(self, document, first, last, draws):
        T = self.windows.length
        short, short_length, split, swap, place = draws
        sentences, offset = self._sentences(first)
        start = self._sentence_start(sentences, offset, first, last, otherwise=first)
        length = min(T, int(self._corpus.document_starts[document + 1]) - start)
        if short < self._short_seq_prob:
            length = min(length, 2 + int(short_length * (T - 1)))
        stop = start + length
        # Sentences that start inside the window, not at its first token.
        low = np.searchsorted(sentences, start - offset, side="right")
        high = np.searchsorted(sentences, stop - offset, side="left")
        at_sentence = bool(high > low)
        if at_sentence:
            middle = int(sentences[low + int(split * (high - low))]) + offset
        else:
            middle = start + 1 + int(split * (length - 1))
        if swap < 0.5:
            return Pair(
                (start, middle), self._elsewhere(document, stop - middle, place, at_sentence), False
            )
        return Pair((start, middle), (middle, stop), True)

    def _elsewhere(self, document, length, draw, at_sentence):
        """A span of `length` tokens of another document, all its tokens equally likely.

        It starts where a sentence starts if the B that it replaces does, so that its beginning
        tells nothing, and is shorter only if its whole document is.
        """
        starts = self._corpus.document_starts
        begin, end = int(starts[document]), int(starts[document + 1])
        place = int(draw * (self._corpus.tokens - (end - begin)))
        place += end - begin if place >= begin else 0
        other = np.searchsorted(starts, place, side="right") - 1
        begin, end = int(starts[other]), int(starts[other + 1])
        place = max(begin, min(place, end - length))
        if not at_sentence:
            return place, min(place + length, end)
        sentences, offset = self._sentences(place)
        place = self._sentence_start(sentences, offset, begin, place, otherwise=place)
        return place, min(place + length, end)

    def _sentences(self, place):
        """Sentence starts of the shard around a token, and the shard's own start."""
        starts = self._corpus.shard_starts
        shard = np.searchsorted(starts, place, side="right") - 1
        return self._corpus.shards[shard].sentences, int(starts[shard])

    @staticmethod
    def _sentence_start(sentences, offset, low, high, otherwise):
        """The last sentence start of [low, high]."""
        i = np.searchsorted(sentences, high - offset, side="right") - 1
        found = int(sentences[i]) + offset
        return found if found >= low else int(otherwise)
