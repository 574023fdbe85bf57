"""Prepares a corpus with processes on this machine."""

import concurrent.futures.process
import contextlib
import functools
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kbert.corpus.deduplication import (
    batch_documents,
    document_digest,
    find_duplicates,
    read_documents,
)
from kbert.corpus.shard_builder import ShardBuilder, Tally, shard_name, write_shard
from kbert.corpus.shards import open_shard
from kbert.corpus.text_sources import TextPiece
from kbert.errors import UserError
from kbert.utils import storage

_SMALL_BYTES = 8 << 20  # below this, starting processes costs more than it saves


def run(
    builder: ShardBuilder,
    pieces: Sequence[TextPiece],
    folder: str,
    deduplicate: bool,
    processes: int | None,
    report: Callable[[str], None],
) -> Tally:
    """Writes the shards of a corpus to an existing folder and returns their Tally.

    Deduplication first writes all documents to a temporary local folder, inside `folder` if that is
    local, then copies the unique ones. It needs 60 bytes of memory per document, plus one batch per
    process. Input under 8 MiB is prepared in this process, whatever the number of `processes`.
    """
    processes = min(processes or os.cpu_count() or 1, len(pieces))
    if _total_bytes(pieces) < _SMALL_BYTES:
        processes = 1
    with _worker_map(builder, processes) as run_all:
        if not deduplicate:
            return _write_pieces(run_all, pieces, folder, report)
        place = None if storage.is_remote(folder) else folder
        with tempfile.TemporaryDirectory(prefix=".staged-", dir=place) as local:
            tally = _write_pieces(run_all, pieces, local, report)
            return _deduplicate(run_all, tally, local, folder, report)


def _total_bytes(pieces):
    return sum(piece.size for piece in pieces)


def _write_pieces(run_all, pieces, folder, report):
    tally = Tally()
    tasks = [(number, piece, folder) for number, piece in enumerate(pieces)]
    start, done, total = time.monotonic(), 0, _total_bytes(pieces)
    for piece, part in zip(pieces, run_all(_write_piece, tasks), strict=True):
        tally.add(part)
        done += piece.size
        if total < _SMALL_BYTES:
            continue
        seconds = max(time.monotonic() - start, 1e-6)  # the clock may not have advanced
        share = max(done, 1) / total  # the first file may be empty
        report(
            f"prepared {done / 1e6:,.0f} of {total / 1e6:,.0f} MB | "
            f"{done / 1e6 / seconds:.1f} MB/s | ETA {seconds * (1 - share) / share:.0f} s"
        )
    return tally


def _deduplicate(run_all, tally, pieces_folder, folder, report):
    """Copies the unique documents from the shards of a Tally to new shards; returns their Tally."""
    shards = [(pieces_folder, entry) for entry in tally.shards]
    digests = np.frombuffer(b"".join(run_all(_shard_digests, shards)), np.uint8).reshape(-1, 16)
    is_duplicate = find_duplicates(digests)
    report(f"{is_duplicate.sum():,} of {len(digests):,} documents are duplicates")
    edges = np.cumsum([entry["counts"]["documents"] for entry in tally.shards])
    tasks = [(folder, *task) for task in zip(shards, np.split(~is_duplicate, edges), strict=False)]
    result = Tally(tally.counts, tally.skipped_lines)
    for number, part in enumerate(run_all(_write_selected, tasks), start=1):
        result.add(part)
        if number % 16 == 0 or number == len(tasks):
            report(f"deduplicated {number:,} of {len(tasks):,} shards")
    return result


def exit_with_parent() -> None:
    """Makes a worker process exit when its parent process ends, instead of waiting forever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_after, args=[parent], daemon=True).start()


def _exit_after(process):
    process.join()
    os._exit(1)


_builder = None


def _start_worker(builder, in_own_process=True):
    global _builder
    if in_own_process:
        exit_with_parent()
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    _builder = builder


def _write_piece(task):
    return _builder.write_shard(*task)


def _shard_digests(shard):
    """Returns the concatenated digests of a shard's documents, 16 bytes each."""
    documents = read_documents(open_shard(*shard, len(_builder.vocab)))
    return b"".join(document_digest(ids, lengths) for _, ids, lengths in documents)


def _write_selected(task):
    """Writes the documents of a shard for which a bool mask is True; returns their Tally."""
    folder, (pieces_folder, entry), keep = task
    tally, vocab_size = Tally(), len(_builder.vocab)
    documents = read_documents(open_shard(pieces_folder, entry, vocab_size))
    kept = itertools.compress(documents, keep)
    for part, documents in itertools.groupby(kept, key=lambda document: document[0]):
        name = shard_name(int(entry["name"]), part)
        write_shard(folder, name, vocab_size, batch_documents(documents), tally)
    return tally


@contextlib.contextmanager
def _worker_map(builder, processes):
    """Yields a function like `map`, which runs in this process or in worker processes."""
    if processes == 1:
        _start_worker(builder, in_own_process=False)
        yield map
        return
    with concurrent.futures.ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(builder,),
    ) as pool:
        yield functools.partial(_pool_map, pool)


def _pool_map(pool, function, tasks):
    try:
        yield from pool.map(function, tasks)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because it ran out of memory. Use fewer "
            "processes, such as --processes=1. (If you call prepare in your own script, do so "
            "under `if __name__ == '__main__':`, because the workers import the script.)"
        ) from error
