"""Prepares a corpus with an Apache Beam pipeline.

The functions of the pipeline write files atomically, so Beam may retry a call or run it twice
concurrently.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import shlex
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kbert.corpus.deduplication import batch_documents, document_digest, read_documents
from kbert.corpus.shard_builder import ShardBuilder, Tally, shard_name, write_shard
from kbert.corpus.shards import check_shards, ids_dtype, open_shard
from kbert.corpus.text_sources import TextPiece
from kbert.errors import UserError
from kbert.utils import storage

if TYPE_CHECKING:
    import apache_beam as beam

_RESULT = ".result.json"
_ERROR = ".error.txt"


def new_pipeline(flags: str) -> "beam.Pipeline":
    """Returns a pipeline with the options given as Beam's flags, in one string."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--runner=beam needs apache-beam: pip install 'kbert[beam]'") from None
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):  # Beam's parser prints the error and exits
            options = PipelineOptions(shlex.split(flags))
            options.get_all_options()
            return beam.Pipeline(options=options)
    except (SystemExit, ValueError) as error:
        reason = (printed.getvalue().strip() or str(error)).splitlines()[-1]
        reason = reason.rpartition("error: ")[2].rstrip(".")
        raise UserError(
            f"Beam rejects --beam_options={flags!r}: {reason}. Give its flags in one string, "
            f"such as --beam_options='--runner=FlinkRunner --flink_master=HOST:8081'."
        ) from error


def run(
    builder: ShardBuilder,
    pieces: Sequence[TextPiece],
    folder: str,
    deduplicate: bool,
    pipeline: "beam.Pipeline",
) -> Tally:
    """Writes the same shards and returns the same Tally as `kbert.corpus.local_runner.run`.

    Only the order of `Tally.shards` may differ. All machines of the runner must share `folder`.
    """
    import apache_beam as beam

    with pipeline:
        tasks = pipeline | "pieces" >> beam.Create(list(enumerate(pieces)))
        tasks = tasks | "spread" >> beam.Reshuffle()
        if deduplicate:
            tallies = _deduplicate(tasks, builder, folder)
        else:
            tallies = tasks | "write pieces" >> beam.Map(_write_piece, builder, folder)
        total = tallies | "count" >> beam.CombineGlobally(_sum_tallies)
        _ = total | "write counts" >> beam.Map(_write_result, folder)
    if _has_error(folder):
        with storage.open_stream(os.path.join(folder, _ERROR)) as file:
            raise UserError(file.read().decode("utf-8"))
    return _read_result(folder, len(builder.vocab))


def _deduplicate(tasks, builder, folder):
    """Returns a PCollection of the tallies of the pieces and of the deduplicated shards."""
    import apache_beam as beam

    documents, tallies = tasks | "tokenize" >> beam.FlatMap(
        _documents, builder, folder
    ).with_outputs("tallies", main="documents")
    shards = (
        documents
        | "remove duplicates" >> beam.CombinePerKey(min)  # keeps the first in input order
        | "unique documents" >> beam.Values()
        | "choose shards" >> beam.Map(lambda document: (shard_name(*document[:2]), document[2:]))
        | "gather shards" >> beam.GroupByKey()
        | "write shards" >> beam.Map(_write_documents, len(builder.vocab), folder)
    )
    return (tallies, shards) | "all counts" >> beam.Flatten()


@contextlib.contextmanager
def _errors_to_file(folder):
    """Writes a UserError to a file; then other calls do nothing, and `run` raises the error.

    Otherwise, Beam would retry the call and report the error as a stack trace. Only a RetryError is
    raised, since a retry helps if storage is temporarily unavailable.
    """
    try:
        yield
    except storage.RetryError:
        raise
    except UserError as error:
        _write_text(folder, _ERROR, str(error))


def _has_error(folder):
    return storage.exists(os.path.join(folder, _ERROR))


def _write_piece(task, builder, folder):
    if not _has_error(folder):
        with _errors_to_file(folder):
            return builder.write_shard(*task, folder)
    return Tally()


def _documents(task, builder, folder):
    """Yields the documents of a piece, keyed by their digests, and the piece's tally.

    A document is a tuple: the number of its piece, the number of its output shard within the piece,
    its own number within the piece, its ids as bytes, and its sentence lengths as bytes.
    """
    import apache_beam as beam

    if _has_error(folder):
        return
    with _errors_to_file(folder), tempfile.TemporaryDirectory() as local:
        tally = builder.write_shard(*task, local)
        for entry in tally.shards:
            documents = read_documents(open_shard(local, entry, len(builder.vocab)))
            for i, (part, ids, lengths) in enumerate(documents):
                yield (
                    document_digest(ids, lengths),
                    (task[0], part, i, ids.tobytes(), lengths.tobytes()),
                )
        yield beam.pvalue.TaggedOutput("tallies", Tally(tally.counts, tally.skipped_lines))


def _write_documents(shard, vocab_size, folder):
    name, documents = shard
    tally = Tally()
    if not _has_error(folder):
        dtype = ids_dtype(vocab_size)
        documents = (
            (number, np.frombuffer(ids, dtype), np.frombuffer(lengths, "<i8"))
            for number, ids, lengths in sorted(documents)
        )
        write_shard(folder, name, vocab_size, batch_documents(documents), tally)
    return tally


def _sum_tallies(tallies):
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def _write_result(tally, folder):
    _write_text(folder, _RESULT, json.dumps(vars(tally), default=np.ndarray.tolist))


def _write_text(folder, name, text):
    with storage.staging_folder(folder) as local:
        pathlib.Path(local, name).write_text(text, encoding="utf-8")


def _read_result(folder, vocab_size):
    try:
        with storage.open_stream(os.path.join(folder, _RESULT)) as file:
            tally = Tally(**json.load(file))
        tally.counts = collections.Counter(tally.counts)
        tally.unigrams = np.asarray(tally.unigrams, np.int64)
        check_shards(folder, tally.shards, vocab_size)
    except storage.RetryError:
        raise
    except (FileNotFoundError, UserError) as error:
        raise UserError(
            f"the pipeline ended, but its files are not in {folder}. Set --output_dir to a folder "
            f"that all machines of the runner share, such as gs://BUCKET/CORPUS. ({error})"
        ) from error
    return tally
