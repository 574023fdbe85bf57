"""The local runner of preparing: processes of this machine."""

import concurrent.futures.process
import contextlib
import functools
import multiprocessing
import os
import tempfile
import threading
import time

import numpy as np
import tensorflow as tf

from kbert.corpus.corpus import Corpus, write_manifest
from kbert.corpus.dedup_shuffle import arrange, digest, duplicates, read_documents, write_documents
from kbert.corpus.shard_builder import Tally
from kbert.errors import UserError
from kbert.utils import storage

_SMALL_BYTES = 8 << 20  # below this, starting processes costs more than it saves


def run(worker, pieces, folder, deduplicate, seed, processes, report):
    """Makes the shards of a corpus and their Tally.

    What is left out or shuffled is first written as it comes, on a local disk, and then copied
    document by document; in memory are 60 bytes for each document, and a batch for each process.

    Args:
        worker: ShardBuilder. pieces: list of TextPiece. folder: local or remote, for the shards.
        deduplicate, seed: see `kbert.corpus.dedup_shuffle`; seed None = no shuffling.
        processes: worker processes; None = one per core. report: called with lines of text.
    """
    processes = min(processes or os.cpu_count() or 1, len(pieces))
    if _total_bytes(pieces) < _SMALL_BYTES:
        processes = 1
    with _workers(worker, processes) as run_all:
        if not deduplicate and seed is None:
            return _write_pieces(run_all, worker, pieces, folder, report)
        place = None if storage.is_remote(folder) else folder
        with tempfile.TemporaryDirectory(prefix=".staged-", dir=place) as local:
            tally = _write_pieces(run_all, worker, pieces, local, report)
            if not tally.shards:
                return tally
            write_manifest(local, tally.shards, tally.vocab_size, "", False, tally.unigrams)
            tally.shards, tally.unigrams = [], np.zeros_like(tally.unigrams)
            for part in _rearrange(run_all, local, folder, deduplicate, seed, report):
                tally.add(part)
            _open_corpus.cache_clear()
            return tally


def _total_bytes(pieces):
    return sum(piece.size for piece in pieces)


def _write_pieces(run_all, worker, pieces, folder, report):
    tally = Tally(len(worker.vocab))
    tasks = [(number, piece, folder) for number, piece in enumerate(pieces)]
    start, done, total = time.monotonic(), 0, _total_bytes(pieces)
    for piece, part in zip(pieces, run_all(_write_piece, tasks), strict=True):
        tally.add(part)
        done += piece.size
        if total < _SMALL_BYTES:
            continue
        seconds = max(time.monotonic() - start, 1e-6)  # clocks may stand still
        share = max(done, 1) / total  # the first file may be empty
        report(
            f"prepared {done / 1e6:,.0f} of {total / 1e6:,.0f} MB | "
            f"{done / 1e6 / seconds:.1f} MB/s | ETA {seconds * (1 - share) / share:.0f} s"
        )
    return tally


def _rearrange(run_all, pieces_folder, folder, deduplicate, seed, report):
    """Tallies of the shards that are made of those of the pieces."""
    corpus = _open_corpus(pieces_folder)
    left_out = np.zeros(corpus.documents, bool)
    if deduplicate:
        tasks = [(pieces_folder, number) for number in range(len(corpus.shards))]
        digests, row = np.empty((corpus.documents, 16), np.uint8), 0
        for part in run_all(_digests, tasks):
            digests[row : row + len(part)] = part
            row += len(part)
        left_out = duplicates(digests)
        del digests
        report(f"{left_out.sum():,} of {corpus.documents:,} documents are duplicates")
    tasks = [(pieces_folder, folder, *shard) for shard in arrange(corpus, left_out, seed)]
    for number, tally in enumerate(run_all(_write_arranged, tasks), start=1):
        yield tally
        if number % 16 == 0 or number == len(tasks):
            report(f"arranged {number:,} of {len(tasks):,} shards")


@functools.lru_cache(maxsize=1)
def _open_corpus(folder):
    return Corpus(folder, verify=False)


def end_with_the_program():
    """Has a worker process end with its program; otherwise it would wait for work for ever."""
    program = multiprocessing.parent_process()
    threading.Thread(target=_end_after, args=[program], daemon=True).start()


def _end_after(program):
    program.join()
    os._exit(1)


_worker = None


def _start_worker(worker, alone=True):
    global _worker
    if alone:
        end_with_the_program()
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    _worker = worker


def _write_piece(task):
    return _worker.write_shard(*task)


def _digests(task):
    """(N, 16) uint8, the digests of the documents of a shard."""
    folder, number = task
    corpus = _open_corpus(folder)
    starts = corpus.document_starts
    first, stop = np.searchsorted(starts, corpus.shard_starts[number : number + 2])
    documents = read_documents(corpus.shards, starts, np.arange(first, stop))
    digests = b"".join(digest(ids, lengths) for ids, lengths in documents)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def _write_arranged(task):
    pieces_folder, folder, name, numbers = task
    corpus = _open_corpus(pieces_folder)
    documents = read_documents(corpus.shards, corpus.document_starts, numbers)
    return write_documents(folder, name, documents, corpus.manifest["vocab_size"])


@contextlib.contextmanager
def _workers(worker, processes):
    """A function like `map`: in this process, or in several."""
    if processes == 1:
        _start_worker(worker, alone=False)
        yield map
        return
    with concurrent.futures.ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(worker,),
    ) as pool:
        yield functools.partial(_pool_map, pool)


def _pool_map(pool, function, tasks):
    try:
        yield from pool.map(function, tasks)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for lack of memory. Use fewer: "
            "--processes=1. (A script of your own must call prepare under "
            "`if __name__ == '__main__':`, since the workers import it.)"
        ) from error
