"""Removes duplicate documents.

Two documents are duplicates if they have the same ids and the same sentence boundaries, compared by
a 128-bit digest. The first one in input order is kept, in the shard of its piece; a piece of more
than `SHARD_TOKENS` tokens is written to several shards.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from kbert.corpus.shards import Shard

SHARD_TOKENS = 1 << 25
_BATCH_TOKENS = 1 << 20  # approximate number of tokens written at once


def read_documents(shard: Shard) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields the documents of the shard of a piece.

    Yields:
        Number of the document's output shard within the piece, (T,) ids, and (S,) int64 lengths of
        the sentences in tokens.
    """
    ids, sentences = np.asarray(shard.ids), np.asarray(shard.sentences)
    starts = np.append(shard.documents, len(ids))
    lengths = np.diff(sentences, append=len(ids))
    first = np.append(np.searchsorted(sentences, shard.documents), len(lengths))
    rows = np.stack([starts[:-1], starts[1:], first[:-1], first[1:]], axis=1)
    for begin, end, a, b in map(np.ndarray.tolist, rows):
        yield begin // SHARD_TOKENS, ids[begin:end], lengths[a:b]


def document_digest(ids: np.ndarray, lengths: np.ndarray) -> bytes:
    """Returns a 16-byte digest of a document's ids and sentence lengths."""
    hasher = hashlib.blake2b(len(lengths).to_bytes(8, "little"), digest_size=16)
    hasher.update(np.ascontiguousarray(lengths, "<i8"))
    hasher.update(np.ascontiguousarray(ids, "<i4"))
    return hasher.digest()


def find_duplicates(digests: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: whether each of the (N, 16) uint8 digests has occurred before."""
    halves = np.ascontiguousarray(digests).view("<u8")
    order = np.lexsort(halves.T)  # stable: equal digests keep their order
    halves = halves[order]
    is_duplicate = np.zeros(len(order), bool)
    is_duplicate[order[1:]] = (halves[1:] == halves[:-1]).all(axis=1)
    return is_duplicate


def batch_documents(
    documents: Iterable[tuple[int, np.ndarray, np.ndarray]],
) -> Iterator[Iterator[np.ndarray]]:
    """Yields the documents of `read_documents` in batches for `write_shard`."""
    batch, size = [], 0
    for _, ids, lengths in documents:
        batch.append((ids, lengths, np.arange(len(lengths)) == 0))
        size += len(ids)
        if size > _BATCH_TOKENS:
            yield map(np.concatenate, zip(*batch, strict=True))
            batch, size = [], 0
    if batch:
        yield map(np.concatenate, zip(*batch, strict=True))
