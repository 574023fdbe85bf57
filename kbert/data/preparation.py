"""Text to a prepared corpus: tokenised once, in parallel processes, written whole or not at all."""

import collections
import concurrent.futures.process
import multiprocessing
import os
import pathlib
import shutil
import time

import numpy as np
import tensorflow as tf

from kbert.data.corpus import find_inputs, read_lines, split_into_pieces, split_sentences
from kbert.data.store import Corpus, ShardWriter, write_manifest
from kbert.data.tokenizer import BertTokenizer
from kbert.errors import UserError

BATCH_BYTES = 1 << 20  # text tokenised at a time
_SMALL_BYTES = 8 << 20  # below this, starting processes costs more than it saves


def prepare(inputs, output_dir, vocab_file, lower_case=True, processes=None, report=None):
    """Tokenises text into a prepared corpus (`kbert.data.store` has the format).

    Text is UTF-8, one sentence or paragraph a line, an empty line between documents. The result is
    the same for any number of processes. Memory is bounded by a batch of text per process.

    Args:
        inputs: comma-separated globs of `.txt`, `.gz`, `.jsonl` (a document under "text" in each
            line), or `tfds:NAME[:SPLIT]`.
        output_dir: folder to make; must not exist, or be empty.
        vocab_file, lower_case: as for `BertTokenizer`; or a BertTokenizer instead of the file.
        processes: worker processes; None = one per core.
        report: called with one line of text now and then.

    Returns:
        Corpus.

    Raises:
        UserError: inputs that cannot be read, are not UTF-8, hold no text or a single document; a
            vocabulary that cannot be used; a folder that is not empty.
    """
    output_dir = pathlib.Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} exists and is not empty. Remove it, or name another folder.")
    report = report or (lambda line: None)
    paths = find_inputs(inputs)
    pieces = split_into_pieces(paths)
    tokenizer = vocab_file
    if not isinstance(tokenizer, BertTokenizer):
        tokenizer = BertTokenizer(vocab_file, lower_case)
    scratch = output_dir.with_name(f"{output_dir.name}.partial-{os.getpid()}")
    for left in output_dir.parent.glob(f"{output_dir.name}.partial-*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        results = _run(pieces, scratch, tokenizer, processes, report)
        found = collections.Counter()
        unigrams = np.zeros(tokenizer.vocab_size, np.int64)
        shards = []
        for shard, piece_counts, piece_unigrams in results:
            found.update(piece_counts)
            unigrams += piece_unigrams
            if shard["counts"]["ids"]:
                shards.append(shard)
            else:
                for part in shard["counts"]:
                    (scratch / f"{shard['name']}.{part}").unlink()
        _check(found, shards, inputs)
        tokenizer.save_pretrained(scratch)
        write_manifest(
            scratch,
            shards,
            tokenizer.vocab_size,
            tokenizer.fingerprint,
            tokenizer.lower_case,
            unigrams,
            lines=found["lines"],
            lines_with_bad_utf8=found["bad_lines"],
            inputs=input_stamps(paths),
        )
        if output_dir.exists():
            output_dir.rmdir()
        scratch.rename(output_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Corpus(output_dir, verify=False)


def input_stamps(paths):
    """What tells whether inputs have changed: path, size in bytes and time of change of each."""
    stamps = []
    for path in paths:
        if path.startswith("tfds:"):
            stamps.append([path, 0, 0])
        else:
            stat = os.stat(path)
            stamps.append([os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    return stamps


def _check(found, shards, inputs):
    if found["bad_lines"] * 10 > found["lines"]:
        raise UserError(
            f"{found['bad_lines']} of {found['lines']} lines of {inputs} are not UTF-8. Convert "
            f"the text first, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        )
    documents = sum(shard["counts"]["documents"] for shard in shards)
    if documents == 0:
        raise UserError(f"{inputs} holds no text.")
    if documents == 1:
        raise UserError(
            f"{inputs} is a single document, but next-sentence prediction takes sentences from "
            f"others. Put an empty line between documents."
        )


def _run(pieces, scratch, tokenizer, processes, report):
    """Results of all pieces in their order, from this process or from several."""
    tasks = [(piece, f"{i:05d}", str(scratch)) for i, piece in enumerate(pieces)]
    sizes = [_size(piece) for piece in pieces]
    processes = min(processes or os.cpu_count() or 1, len(pieces))
    start, done = time.monotonic(), 0
    if processes == 1 or sum(sizes) < _SMALL_BYTES:
        tokenize = _sentence_tokenizer(tokenizer)
        results = (_prepare_piece(task, tokenize) for task in tasks)
        yield from results
        return
    with concurrent.futures.ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer.vocab, tokenizer.settings),
    ) as pool:
        results = pool.map(_work, tasks)
        for size in sizes:
            try:
                yield next(results)
            except concurrent.futures.process.BrokenProcessPool as error:
                raise UserError(
                    "a worker process was killed, most likely for lack of memory. Use fewer: "
                    "--processes=1. (A script of your own must call prepare under "
                    "`if __name__ == '__main__':`, since the workers import it.)"
                ) from error
            done += size
            seconds = time.monotonic() - start
            share = max(done, 1) / sum(sizes)  # the first file may be empty
            report(
                f"prepared {done / 1e6:,.0f} of {sum(sizes) / 1e6:,.0f} MB | "
                f"{done / 1e6 / seconds:.1f} MB/s | ETA {seconds * (1 - share) / share:.0f} s"
            )


def _size(piece):
    if piece.path.startswith("tfds:"):
        return _SMALL_BYTES
    return (piece.end or os.path.getsize(piece.path)) - piece.begin


def _sentence_tokenizer(tokenizer):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def tokenize(sentences):
        ids = tokenizer.tokenize(sentences)
        return ids.flat_values, ids.row_lengths()

    tokenize.vocab_size = tokenizer.vocab_size
    return tokenize


_worker_tokenize = None


def _start_worker(vocab, settings):
    global _worker_tokenize
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    _worker_tokenize = _sentence_tokenizer(BertTokenizer(vocab, **settings))


def _work(task):
    return _prepare_piece(task, _worker_tokenize)


def _prepare_piece(task, tokenize):
    """Writes the shard of one piece.

    Returns:
        its manifest entry, Counter of lines and bad_lines, (V,) int64 counts of ids.
    """
    piece, name, folder = task
    writer = ShardWriter(folder, name, tokenize.vocab_size)
    found = collections.Counter()
    sentences, starts, size, new_document = [], [], 0, True

    def flush():
        ids, lengths = tokenize(sentences)
        writer.write(ids.numpy(), lengths.numpy(), np.asarray(starts, bool))

    for line in read_lines(piece):
        if not line:
            new_document = True
            continue
        found["lines"] += 1
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            found["bad_lines"] += 1
            text = line.decode("utf-8", "replace")
        parts = split_sentences(text)
        sentences += parts
        starts += [new_document] + [False] * (len(parts) - 1)
        new_document = False
        size += len(line)
        if size > BATCH_BYTES:
            flush()
            sentences, starts, size = [], [], 0
    if sentences:
        flush()
    return writer.close(), found, writer.unigrams
