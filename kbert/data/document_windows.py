"""Splits the documents of a prepared corpus into windows, the texts of pretraining examples.

Overlapping windows of at most T tokens cover each document. An epoch visits each window once. The
first window of a document starts with the document. The others move from epoch to epoch; each
starts up to T/4 tokens before the tokens that it must cover, at a sentence start if there is one.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kbert.utils.stateless_random import uniform

if TYPE_CHECKING:
    from kbert.corpus.corpus import Corpus

_STREAM_SHIFT = 0  # of kbert.utils.stateless_random


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """The tokens of B rows before masking, as spans of the corpus and positions of [CLS] and [SEP].

    Attributes:
        spans: (N, 2) int64, spans [first, stop) of the corpus, in tokens; their tokens fill the
            positions of `is_text` in order.
        is_text, is_cls, is_sep: (B, L) bool, positions of tokens of the corpus, of [CLS] and of
            [SEP]; all other positions are padding.
        features: dict of other features of `kbert.features`, such as token_type_ids.
    """

    spans: np.ndarray
    is_text: np.ndarray
    is_cls: np.ndarray
    is_sep: np.ndarray
    features: dict[str, np.ndarray]

    @property
    def is_token(self) -> np.ndarray:
        """(B, L) bool, False for padding."""
        return self.is_text | self.is_cls | self.is_sep


class DocumentWindows:
    """The windows of at most T tokens over all documents of a corpus.

    The first window of a document is at its start. The bodies of further windows, T - T//4 tokens
    each, cover the remaining tokens.

    Args:
        document_starts: (documents + 1,) int64; see `kbert.corpus.Corpus`.
        length: T, at least 2.
        min_tokens: documents with fewer tokens have no window.

    Attributes:
        count: int, number of windows.
    """

    def __init__(self, document_starts: np.ndarray, length: int, min_tokens: int):
        self.length = T = length
        self.min_tokens = min_tokens
        self.slack: int = T // 4
        self.body: int = T - self.slack
        self._starts = document_starts
        self._sizes = sizes = np.diff(document_starts)
        extra = -(-np.maximum(sizes - T, 0) // self.body)  # ceil
        self._ends = np.cumsum(np.where(sizes < min_tokens, 0, 1 + extra))
        self.count: int = int(self._ends[-1])

    def locate(
        self, slots: np.ndarray, epoch: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the positions of windows in an epoch.

        Args:
            slots: (B,) numbers of the windows.
            epoch: (B,) their epochs.
            seed: seed of the run.

        Returns:
            document, first and last, (B,) int64 each: the number of the document, and the first and
            last token of the corpus at which the window may start.
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
        """Estimates the number of windows of an epoch that contain a token, averaged over tokens.

        The estimate assumes that every window of a document with more than T tokens has T tokens;
        the last one may be shorter.

        Args:
            short_seq_prob: fraction of the windows cut to a random length in [min_tokens, T].
        """
        T = self.length
        sizes = self._sizes[self._sizes >= self.min_tokens]
        targets = np.arange(self.min_tokens, T + 1)
        first = np.minimum(sizes, T)
        # cut[n]: mean length of a window of n tokens that is cut to a random length.
        cut = np.minimum(np.arange(T + 1)[:, None], targets).mean(axis=1)
        seen = (1 - short_seq_prob) * first + short_seq_prob * cut[first]
        full = (1 - short_seq_prob) * T + short_seq_prob * cut[T]
        total = seen.sum() + (self.count - len(sizes)) * full
        return float(total / self._sizes.sum())


class SentenceStarts:
    """Finds sentence starts in a corpus."""

    def __init__(self, corpus: "Corpus"):
        self._corpus = corpus

    def last(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Returns the last sentence start in [low, high], or low if there is none; (N,) int64."""
        result = np.empty_like(high)
        for sentences, offset, rows in self._by_shard(high):
            i = np.searchsorted(sentences, high[rows] - offset, side="right") - 1
            result[rows] = sentences[i] + offset
        return np.where(result >= low, result, low)

    def inside(
        self, start: np.ndarray, stop: np.ndarray, draw: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a random sentence start in each open interval (start, stop).

        Args:
            start, stop: (N,) int64.
            draw: (N,) uniform random numbers in [0, 1).

        Returns:
            (N,) int64 sentence starts, and (N,) bool, whether the interval contains one; if not,
            its sentence start is arbitrary.
        """
        result, has_start = np.empty_like(start), np.empty(len(start), bool)
        for sentences, offset, rows in self._by_shard(start):
            low = np.searchsorted(sentences, start[rows] - offset, side="right")
            count = np.searchsorted(sentences, stop[rows] - offset, side="left") - low
            has_start[rows] = count > 0
            chosen = np.minimum(low + floor(draw[rows] * count), len(sentences) - 1)
            result[rows] = sentences[chosen] + offset
        return result, has_start

    def _by_shard(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Groups places by shard.

        Yields:
            Sentence starts of the shard, its first token, and an (N,) bool mask of its places.
        """
        starts = self._corpus.shard_starts
        shards = np.searchsorted(starts, places, side="right") - 1
        for shard in np.unique(shards):
            yield self._corpus.shards[shard].sentences, starts[shard], shards == shard


def floor(x: np.ndarray) -> np.ndarray:
    """Rounds non-negative numbers down to int64."""
    return x.astype(np.int64)
