"""Converts a piece of the input to a shard of ids; used by both runners."""

import collections
import dataclasses
import functools
import typing
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from kbert.corpus.shards import ShardWriter
from kbert.corpus.text_sources import TextPiece, read_lines, split_sentences
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.utils import storage

BATCH_BYTES = 1 << 20  # approximate size of the text that is tokenized at once
_REPORTED_LINES = 5  # number of skipped lines to report by file and line number


@dataclasses.dataclass
class Tally:
    """Counts of a part of the input, and the shards written from it.

    Attributes:
        counts: Counter of lines, bytes, lines_with_bad_utf8, skipped_lines, documents (with at
            least one line) and documents_with_tokens.
        skipped_lines: the first five skipped lines, as pairs (number of the piece, file and line).
        shards: their entries in the manifest.
        unigrams: (V,) int64, number of occurrences of each id in the shards; the int 0 without any.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    skipped_lines: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    shards: list[dict[str, typing.Any]] = dataclasses.field(default_factory=list)
    unigrams: np.ndarray | int = 0

    def add(self, other: "Tally") -> None:
        """Adds another Tally; the order of additions affects only the order of `shards`."""
        self.counts.update(other.counts)
        # The sort is stable: the lines of a piece, all from one tally, keep their order.
        lines = self.skipped_lines + other.skipped_lines
        self.skipped_lines = sorted(lines, key=lambda item: item[0])[:_REPORTED_LINES]
        self.shards += other.shards
        self.unigrams = self.unigrams + other.unigrams

    def skip_line(self, number: int, where: str) -> None:
        """Counts a skipped line of piece `number`; `where` is its file and line."""
        self.counts["skipped_lines"] += 1
        if len(self.skipped_lines) < _REPORTED_LINES:
            self.skipped_lines.append((number, where))

    @property
    def documents(self) -> int:
        """Number of documents in the shards."""
        return sum(shard["counts"]["documents"] for shard in self.shards)

    def sorted_shards(self) -> list[dict[str, typing.Any]]:
        """Returns the shards' entries in the order of the corpus: 00007, 00007-1, 00008."""
        return sorted(self.shards, key=lambda e: [int(part) for part in e["name"].split("-")])


def shard_name(number: int, part: int = 0) -> str:
    """Returns the name of a shard's files, such as "00007" or, for part 1 of a piece, "00007-1"."""
    return f"{number:05d}" + (f"-{part}" if part else "")


def write_shard(
    folder: str,
    name: str,
    vocab_size: int,
    batches: Iterable[Iterable[np.ndarray]],
    tally: Tally,
) -> None:
    """Writes a shard atomically, if it has tokens, and adds it to a tally.

    `batches` has the arguments of each call of `ShardWriter.write`.
    """
    with storage.staging_folder(folder) as local:
        writer = ShardWriter(local, name, vocab_size)
        for batch in batches:
            writer.write(*batch)
        entry = writer.close()
    tally.shards += [entry] if entry["counts"]["ids"] else []
    tally.unigrams = tally.unigrams + writer.unigrams


@dataclasses.dataclass(frozen=True)
class ShardBuilder:
    """Writes the shards of pieces; it can be pickled and sent to another process."""

    fingerprint: str
    vocab: tuple[str, ...] = dataclasses.field(compare=False)
    settings: dict[str, bool] = dataclasses.field(compare=False)
    skip_bad_lines: bool = False

    @classmethod
    def from_tokenizer(cls, tokenizer: BertTokenizer, skip_bad_lines: bool = False) -> typing.Self:
        """Creates the builder for a tokenizer."""
        vocab = tuple(tokenizer.vocab)
        return cls(tokenizer.fingerprint, vocab, tokenizer.settings, skip_bad_lines)

    def write_shard(self, number: int, piece: TextPiece, folder: str) -> Tally:
        """Writes the shard of piece `number` of the input, if it has tokens; returns its Tally."""
        tally = Tally()
        batches = self._batches(number, piece, tally)
        write_shard(folder, shard_name(number), len(self.vocab), batches, tally)
        tally.counts["documents_with_tokens"] = tally.documents
        return tally

    def _batches(self, number, piece, tally):
        """Yields the arguments of `ShardWriter.write` for batches of sentences."""
        tokenize, counts = _sentence_tokenizer(self), tally.counts
        skip_line = functools.partial(tally.skip_line, number) if self.skip_bad_lines else None
        sentences, starts, size, new_document = [], [], 0, True
        for line in read_lines(piece, skip_line):
            if not line:
                new_document = True
                continue
            counts["lines"] += 1
            counts["bytes"] += len(line)
            counts["documents"] += new_document
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                counts["lines_with_bad_utf8"] += 1
                text = line.decode("utf-8", "replace")
            parts = split_sentences(text)
            sentences += parts
            starts += [new_document] + [False] * (len(parts) - 1)
            new_document = False
            size += len(line)
            if size > BATCH_BYTES:
                yield *tokenize(sentences), np.asarray(starts, bool)
                sentences, starts, size = [], [], 0
        if sentences:
            yield *tokenize(sentences), np.asarray(starts, bool)


@functools.lru_cache(maxsize=1)
def _sentence_tokenizer(builder):
    """Returns a function from sentences to their concatenated ids and their lengths in tokens."""
    tokenizer = BertTokenizer(builder.vocab, **builder.settings)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize(sentences):
        ids = tokenizer.tokenize(sentences)
        return ids.flat_values, ids.row_lengths()

    return lambda sentences: [values.numpy() for values in tokenize(sentences)]
