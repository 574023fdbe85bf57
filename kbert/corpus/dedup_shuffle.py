"""Leaving out duplicates of documents, and shuffling documents over the whole corpus.

Two documents are the same if the model would see the same: equal ids, cut into the same sentences.
They are compared by a digest of 128 bits. Of equal ones the first in the order of the input stays.

Shuffled documents are in the order of numbers drawn for (seed, piece, number in the piece), so that
the place of each is known without the others. The new shards have about `SHARD_TOKENS` tokens:
shuffled, the shard is that of the number drawn, else that of the piece and of the place in it.
"""

import hashlib

import numpy as np

from kbert.corpus.shard_builder import Tally, shard_name, write_shard
from kbert.utils.stateless_random import uniform

SHARD_TOKENS = 1 << 25
_BATCH_TOKENS = 1 << 20  # written at a time
_STREAM = 5  # of kbert.utils.stateless_random; pairs and masks take those before
_PIECE = 1 << 40  # more documents than a piece holds


def read_documents(shards, starts, numbers):
    """Yields documents of shards: (T,) ids and (S,) tokens of each sentence.

    Args:
        shards: list of `kbert.corpus.corpus.Shard`.
        starts: (documents + 1,) first token of each, counted over all shards.
        numbers: (N,) which documents.
    """
    shard_starts = np.cumsum([0, *(len(shard.ids) for shard in shards)])
    arrays = [(np.asarray(shard.ids), np.asarray(shard.sentences)) for shard in shards]
    of_shard = np.searchsorted(shard_starts, starts[numbers], side="right") - 1
    spans = np.stack([starts[numbers], starts[numbers + 1]], 1) - shard_starts[of_shard, None]
    sentences = np.empty_like(spans)  # of each document: first, and after the last
    for shard in np.unique(of_shard):
        rows = of_shard == shard
        sentences[rows] = np.searchsorted(arrays[shard][1], spans[rows])
    places = np.column_stack([of_shard, spans, sentences])
    for shard, begin, end, first, stop in map(np.ndarray.tolist, places):
        ids, sentence_starts = arrays[shard]
        lengths = np.empty(stop - first, np.int64)
        np.subtract(
            sentence_starts[first + 1 : stop], sentence_starts[first : stop - 1], lengths[:-1]
        )
        lengths[-1] = end - sentence_starts[stop - 1]
        yield ids[begin:end], lengths


def digest(ids, lengths):
    """16 bytes that are the same for the same document alone. Arguments: as `read_documents`."""
    lengths = np.ascontiguousarray(lengths, "<i8")
    hasher = hashlib.blake2b(len(lengths).to_bytes(8, "little"), digest_size=16)
    hasher.update(lengths.tobytes())
    hasher.update(np.ascontiguousarray(ids, "<i4").tobytes())
    return hasher.digest()


def draw_keys(seed, piece, count):
    """(count,) float64 in [0, 1), one for each document of a piece; zeros if the seed is None."""
    if seed is None:
        return np.zeros(count)
    return uniform(seed, _STREAM, piece * _PIECE + np.arange(count), 1)[:, 0]


def duplicates(digests):
    """(N,) bool, which of the (N, 16) uint8 digests have come before."""
    halves = np.ascontiguousarray(digests).view("<u8")
    order = np.lexsort(halves.T)  # stable: of equal ones the first stays first
    same = np.ones(max(len(order) - 1, 0), bool)
    for half in halves.T:
        same &= half[order[1:]] == half[order[:-1]]
    is_duplicate = np.zeros(len(halves), bool)
    is_duplicate[order[1:][same]] = True
    return is_duplicate


def shard_count(tokens):
    """Shards that shuffled documents of so many tokens are spread over."""
    return max(1, -(-tokens // SHARD_TOKENS))


def arrange(corpus, left_out, seed):
    """Yields the name of each new shard and its documents in order, (N,) numbers in the corpus.

    Args:
        corpus: `kbert.corpus.Corpus` whose shards are named by the pieces they were made of.
        left_out: (documents,) bool. seed: int to shuffle with, or None.
    """
    starts, kept = corpus.document_starts, np.flatnonzero(~left_out)
    edges = np.searchsorted(starts, corpus.shard_starts)  # first document of each shard
    pieces = [int(entry["name"]) for entry in corpus.manifest["shards"]]
    if seed is None:
        for piece, first, stop in zip(pieces, edges, edges[1:], strict=False):
            documents = kept[np.searchsorted(kept, first) : np.searchsorted(kept, stop)]
            parts = (starts[documents] - starts[first]) // SHARD_TOKENS
            for part in np.unique(parts).tolist():
                yield shard_name(piece, part), documents[parts == part]
        return
    counts = np.diff(edges).tolist()
    keys = [draw_keys(seed, *pair) for pair in zip(pieces, counts, strict=True)]
    keys = np.concatenate(keys)[kept]
    order = np.argsort(keys, kind="stable")
    count = shard_count(int((starts[kept + 1] - starts[kept]).sum()))
    bounds = np.searchsorted((keys[order] * count).astype(np.int64), np.arange(count + 1))
    for number in range(count):
        yield shard_name(number), kept[order[bounds[number] : bounds[number + 1]]]


def write_documents(folder, name, documents, vocab_size):
    """Writes documents, in the form of `read_documents`, as a shard. Returns its Tally."""
    tally = Tally(vocab_size)
    write_shard(folder, name, _batches(documents), tally)
    return tally


def _batches(documents):
    batch, size = [], 0
    for ids, lengths in documents:
        batch.append((ids, lengths, np.arange(len(lengths)) == 0))
        size += len(ids)
        if size > _BATCH_TOKENS:
            yield map(np.concatenate, zip(*batch, strict=True))
            batch, size = [], 0
    if batch:
        yield map(np.concatenate, zip(*batch, strict=True))
