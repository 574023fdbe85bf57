"""Leaving out duplicates of documents.

Two documents are the same if the model would see the same: equal ids, cut into the same sentences.
They are compared by a digest of 128 bits. Of equal ones the first in the order of the input stays,
in the shard of its piece; a piece of more than `SHARD_TOKENS` tokens makes several shards.
"""

import hashlib

import numpy as np

SHARD_TOKENS = 1 << 25
_BATCH_TOKENS = 1 << 20  # written at a time


def read_documents(shard):
    """Yields each document of a piece's `kbert.corpus.corpus.Shard`.

    A document is the part of the piece that it is in, an int, its (T,) ids and the (S,) int64
    tokens of each of its sentences.
    """
    ids, sentences = np.asarray(shard.ids), np.asarray(shard.sentences)
    starts = np.append(shard.documents, len(ids))
    lengths = np.diff(sentences, append=len(ids))
    first = np.append(np.searchsorted(sentences, shard.documents), len(lengths))
    rows = np.stack([starts[:-1], starts[1:], first[:-1], first[1:]], axis=1)
    for begin, end, a, b in map(np.ndarray.tolist, rows):
        yield begin // SHARD_TOKENS, ids[begin:end], lengths[a:b]


def digest(ids, lengths):
    """16 bytes that are the same for the same document alone. Arguments: as `read_documents`."""
    hasher = hashlib.blake2b(len(lengths).to_bytes(8, "little"), digest_size=16)
    hasher.update(np.ascontiguousarray(lengths, "<i8"))
    hasher.update(np.ascontiguousarray(ids, "<i4"))
    return hasher.digest()


def duplicates(digests):
    """(N,) bool, which of the (N, 16) uint8 digests have come before."""
    halves = np.ascontiguousarray(digests).view("<u8")
    order = np.lexsort(halves.T)  # stable: of equal ones the first stays first
    halves = halves[order]
    is_duplicate = np.zeros(len(order), bool)
    is_duplicate[order[1:]] = (halves[1:] == halves[:-1]).all(axis=1)
    return is_duplicate


def batches(documents):
    """Yields documents, as from `read_documents`, in the form that `write_shard` takes."""
    batch, size = [], 0
    for _, ids, lengths in documents:
        batch.append((ids, lengths, np.arange(len(lengths)) == 0))
        size += len(ids)
        if size > _BATCH_TOKENS:
            yield map(np.concatenate, zip(*batch, strict=True))
            batch, size = [], 0
    if batch:
        yield map(np.concatenate, zip(*batch, strict=True))
