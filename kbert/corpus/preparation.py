"""Tokenizes text into a prepared corpus, atomically, on one or several machines."""

import contextlib
import os
import typing
from collections.abc import Callable, Mapping, Sequence

from kbert.corpus import local_runner
from kbert.corpus.corpus import MANIFEST, Corpus, write_manifest
from kbert.corpus.shard_builder import ShardBuilder
from kbert.corpus.text_sources import find_inputs, split_into_pieces
from kbert.errors import UserError
from kbert.settings import PrepareConfig
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.utils import atomic, storage
from kbert.utils.input_files import encoding_note, has_non_utf8_lines
from kbert.utils.locks import target_lock


def prepare(
    inputs: str,
    output_dir: str | os.PathLike[str],
    vocab_file: str | os.PathLike[str] | BertTokenizer,
    lower_case: bool = True,
    report: Callable[[str], None] | None = None,
    **options: object,
) -> Corpus:
    """Tokenizes text into a prepared corpus and opens it.

    Args:
        inputs: text to read, comma-separated: globs, local or remote, folders of Hugging Face
            `datasets`, "tfds:NAME", "sample:train" or "sample:heldout".
        output_dir: folder to create, local or remote; must be empty if it exists.
        vocab_file: vocabulary file, or a BertTokenizer.
        lower_case: whether to lower-case the text and strip accents; unused if `vocab_file` is a
            BertTokenizer.
        report: called with each line of progress output.
        **options: other fields of `kbert.settings.PrepareConfig`, such as `processes`.

    Returns:
        The open corpus. A remote corpus is downloaded into the cache first.

    Raises:
        UserError: an option is invalid; see also `write_corpus`.
    """
    tokenizer = vocab_file if isinstance(vocab_file, BertTokenizer) else None
    config = PrepareConfig(
        input=inputs,
        output_dir=str(output_dir),
        vocab_file="given" if tokenizer else str(vocab_file),
        lower_case=lower_case,
        **options,
    )
    write_corpus(config, tokenizer, report)
    return Corpus(output_dir, verify=False, report=report)


def write_corpus(
    config: PrepareConfig,
    tokenizer: BertTokenizer | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, typing.Any]:
    """Tokenizes text into a prepared corpus (see `kbert.corpus.corpus`); returns its manifest.

    The input may have any format of `kbert.corpus.text_formats`; text files must be UTF-8, and
    plain text has one sentence or paragraph per line and an empty line between documents. Both
    runners write the same files, for any number of worker processes. With the local runner, each
    worker holds one batch of text in memory, and deduplication needs another 60 bytes per document
    in the main process.

    Args:
        config: settings of the corpus.
        tokenizer: tokenizer to use instead of `config.vocab_file`.
        report: called with each line of progress output.

    Raises:
        UserError: the inputs cannot be read, contain no text, or contain only one document without
            `config.single_document`; more than 10 % of their lines are not UTF-8; a line is bad;
            the vocabulary is invalid; a worker process is killed; Apache Beam is not installed,
            rejects `config.beam_options`, or runs on machines that do not share the output folder;
            the output folder is not empty, cannot be written, or is being written by another
            process on this machine.
    """
    report = report or (lambda line: None)
    if config.runner == "beam":
        from kbert.corpus import beam_runner

        pipeline = beam_runner.new_pipeline(config.beam_options)
    paths = find_inputs(config.input)
    stamps, pieces = input_stamps(paths), split_into_pieces(paths)
    tokenizer = tokenizer or BertTokenizer(config.vocab_file, config.lower_case)
    builder = ShardBuilder.from_tokenizer(tokenizer, skip_bad_lines=config.skip_bad_lines)
    with _work_folder(config.output_dir) as folder:
        if config.runner == "beam":
            report(f"preparing {len(pieces):,} pieces with Beam")
            tally = beam_runner.run(builder, pieces, folder, config.deduplicate, pipeline)
        else:
            tally = local_runner.run(
                builder, pieces, folder, config.deduplicate, config.processes, report
            )
        _check_tally(tally, config, paths)
        for name in storage.list_folder(folder):
            if name.startswith("."):  # left by Beam, or by a worker that was killed
                storage.remove(os.path.join(folder, name))
        with storage.staging_folder(folder, last=MANIFEST) as staging:
            tokenizer.save_pretrained(staging)
            return write_manifest(
                staging,
                tokenizer,
                tally.sorted_shards(),
                tally.unigrams,
                deduplicate=config.deduplicate,
                **_manifest_counts(tally),
                inputs=stamps,
            )


def _manifest_counts(tally):
    counts, names = tally.counts, ("bytes", "lines", "lines_with_bad_utf8", "skipped_lines")
    return {
        **{name: counts[name] for name in names},
        "first_skipped_lines": [where for _, where in tally.skipped_lines],
        "documents_without_tokens": counts["documents"] - counts["documents_with_tokens"],
        "removed_duplicates": counts["documents_with_tokens"] - tally.documents,
    }


@contextlib.contextmanager
def _work_folder(output_dir):
    """Yields the folder to write to.

    A local folder is renamed to `output_dir` if the block succeeds. A remote `output_dir` is
    written directly, and removed if the block fails.
    """
    if storage.is_remote(output_dir):
        storage.check_output_folder_is_free(output_dir)
        storage.make_folder(output_dir)
        try:
            yield str(output_dir)
        except BaseException:
            with contextlib.suppress(UserError):  # the first error is more informative
                storage.remove(output_dir)
            raise
        return
    with target_lock(output_dir):
        storage.check_output_folder_is_free(output_dir)
        with atomic.folder(output_dir) as folder:
            yield str(folder)


def input_stamps(paths: Sequence[str]) -> list[list[str | int]]:
    """Returns [path, size in bytes, modification time in nanoseconds] of each input.

    If one of these values changes, the input has changed. Both numbers are 0 for TFDS.
    """
    files = [path for path in paths if not path.startswith("tfds:")]
    stats = dict(zip(files, storage.stat_all(files), strict=True))
    stamps = []
    for path in paths:
        place = path if path not in stats or storage.is_remote(path) else os.path.abspath(path)
        stamps.append([place, *stats.get(path, (0, 0))])
    return stamps


def _check_tally(tally, config, paths):
    inputs = config.input
    bad, lines = tally.counts["lines_with_bad_utf8"], tally.counts["lines"]
    if bad * 10 > lines:
        files = [
            path for path in paths if not path.startswith("tfds:") and has_non_utf8_lines(path)
        ]
        example = f", for example in {files[0]}{encoding_note(files[0])}" if files else ""
        raise UserError(f"{bad} of {lines} lines of {inputs} are not UTF-8{example}.")
    if tally.documents == 0:
        skipped = f" ({tally.counts['skipped_lines']} bad lines were skipped)"
        raise UserError(f"{inputs} contains no text{skipped if tally.skipped_lines else ''}.")
    if tally.documents == 1 and not config.single_document:
        copies = tally.counts["documents_with_tokens"] - 1
        raise UserError(
            f"{inputs} is a single document{f', and {copies} duplicates of it' if copies else ''}, "
            f"but next sentence prediction needs several. Separate documents by empty lines. To "
            f"pretrain without it, set --single_document in kbert.prepare and "
            f"--next_sentence=false in kbert.pretrain."
        )


def summary(manifest: Mapping[str, typing.Any]) -> list[str]:
    """Returns the lines of a summary of a corpus, given its manifest."""
    rows = [
        ("input files", f"{len(manifest['inputs']):,}"),
        ("text", f"{manifest['bytes'] / 1e6:,.1f} MB"),
        ("lines", f"{manifest['lines']:,}"),
        ("  with bytes that are not UTF-8", f"{manifest['lines_with_bad_utf8']:,}"),
        ("bad lines, skipped", f"{manifest['skipped_lines']:,}"),
        ("documents without tokens, skipped", f"{manifest['documents_without_tokens']:,}"),
        ("duplicate documents, removed", f"{manifest['removed_duplicates']:,}"),
        ("documents", f"{manifest['documents']:,}"),
        ("sentences", f"{manifest['sentences']:,}"),
        ("tokens", f"{manifest['tokens']:,}"),
    ]
    if not manifest["deduplicate"]:
        rows = [row for row in rows if not row[0].startswith("duplicate")]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}} {value:>15}" for name, value in rows]
    return lines + [f"skipped: {where}" for where in manifest["first_skipped_lines"]]
