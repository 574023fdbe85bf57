"""Creates rows of single texts, [CLS] text [SEP], for masked language modeling without NSP.

A text is a window of at most T = max_seq_length - 2 consecutive tokens of one document; see
`kbert.data.document_windows`. With packing, documents of at most T tokens share rows. `TextSampler`
assigns the documents to rows once, so that each row can be computed from its number. Masks, the
order of the rows, the windows of long documents and the choice of shortened texts change from epoch
to epoch.
"""

from typing import TYPE_CHECKING

import numpy as np

from kbert.data.document_windows import DocumentWindows, SentenceStarts, TokenRows, floor
from kbert.data.packed_rows import lay_out, pack, ranges
from kbert.utils.stateless_random import uniform

if TYPE_CHECKING:
    from kbert.corpus.corpus import Corpus

# Streams of kbert.utils.stateless_random. `sentence_pairs` also uses 1, but never in the same run.
_STREAM_TEXT, _STREAM_PACK = 1, 8


class TextSampler:
    """Cuts texts from the documents of a corpus and arranges them in rows.

    The first rows hold one window each, of documents with more than T tokens. The other rows hold
    one whole document or, with packing, several; packing assigns documents of equal length to rows
    at random.

    Args:
        corpus: `kbert.corpus.Corpus`.
        max_seq_length: L; texts have at most T = L - 2 tokens.
        short_seq_prob: fraction of the texts cut to a random length in [1, T].
        seed: seed of the run.
        packing: whether documents share rows.

    Attributes:
        count: number of rows, which is the number of examples per epoch.
    """

    def __init__(
        self,
        corpus: "Corpus",
        max_seq_length: int,
        short_seq_prob: float,
        seed: int,
        packing: bool = False,
    ):
        T = max_seq_length - 2
        sizes = np.diff(corpus.document_starts)
        self._windows = DocumentWindows(corpus.document_starts, T, min_tokens=T + 1)
        self._documents = np.flatnonzero((sizes > 0) & (sizes <= T))
        self._row_starts = np.arange(len(self._documents) + 1)  # indices in `_documents`
        if packing:
            draws = uniform(seed, _STREAM_PACK, self._documents, 1)[:, 0]
            documents = self._documents[np.argsort(draws, kind="stable")]
            order, self._row_starts = pack(sizes[documents] + 2, max_seq_length)
            self._documents = documents[order]
        self.count: int = self._windows.count + len(self._row_starts) - 1
        self._sentences = SentenceStarts(corpus)
        self._corpus = corpus
        self._max_seq_length = max_seq_length
        self._short_seq_prob = short_seq_prob
        self._seed = seed
        self._packing = packing

    def rows(self, index: np.ndarray, epoch: np.ndarray, slots: np.ndarray) -> TokenRows:
        """Returns the examples, each a row of the form [CLS] text [SEP] [CLS] text [SEP] ...

        Args:
            index: (B,) number of each example in the run, which seeds its random numbers.
            epoch: (B,) epoch of each example, which seeds the positions of the windows.
            slots: (B,) number of the row of each example.
        """
        start, length, counts = self._texts(epoch, slots)
        length = self._shortened_length(index, length, counts)
        sequence_ids, position_ids, first = lay_out(length + 2, counts, self._max_seq_length)
        is_cls, is_sep = np.zeros((2, *sequence_ids.shape), bool)
        is_cls.flat[first] = is_sep.flat[first + length + 1] = True
        is_text = (sequence_ids > 0) & ~is_cls & ~is_sep
        features = {"token_type_ids": np.zeros_like(sequence_ids)}
        if self._packing:
            features |= {"position_ids": position_ids, "sequence_ids": sequence_ids}
        spans = np.stack([start, start + length], axis=1)
        return TokenRows(spans, is_text, is_cls, is_sep, features)

    def _texts(self, epoch, slots):
        """Returns the starts (N,) and lengths (N,) of the texts, row by row.

        Also returns the number of texts in each row (B,).
        """
        starts, T = self._corpus.document_starts, self._windows.length
        is_window = slots < self._windows.count
        packs = slots[~is_window] - self._windows.count
        begins, counts = self._row_starts[packs], np.ones_like(slots)
        counts[~is_window] = self._row_starts[packs + 1] - begins
        of_window = np.repeat(is_window, counts)  # (N,)
        documents = np.empty(len(of_window), np.int64)
        documents[~of_window] = self._documents[ranges(begins, counts[~is_window])]
        place = self._windows.locate(slots[is_window], epoch[is_window], self._seed)
        documents[of_window], first, last = place
        start = starts[documents]
        start[of_window] = self._sentences.last(first, last)
        return start, np.minimum(T, starts[documents + 1] - start), counts

    def _shortened_length(self, index, length, counts):
        """Returns (N,) lengths after cutting some texts to a random length."""
        max_texts = int(counts.max())
        draws = uniform(self._seed, _STREAM_TEXT, index, 2 * max_texts).reshape(-1, max_texts, 2)
        draws = draws[np.arange(max_texts) < counts[:, None]]  # (N, 2)
        cut = np.minimum(length, 1 + floor(draws[:, 1] * self._windows.length))
        return np.where(draws[:, 0] < self._short_seq_prob, cut, length)

    def views_per_token(self) -> float:
        """Estimates the mean number of rows of an epoch that contain a token."""
        windows = DocumentWindows(self._corpus.document_starts, self._windows.length, min_tokens=1)
        return windows.views_per_token(self._short_seq_prob)
