"""A piece of the input to a shard of ids: the work of one process, whichever runner runs it."""

import collections
import dataclasses
import functools

import numpy as np
import tensorflow as tf

from kbert.corpus.corpus import ShardWriter
from kbert.corpus.text_sources import read_lines, split_sentences
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.utils import storage

BATCH_BYTES = 1 << 20  # text tokenised at a time
_NAMED_LINES = 5  # of those that were left out


@dataclasses.dataclass
class Tally:
    """What was found in a part of the input, and the shards that were made of it.

    Attributes:
        counts: Counter of lines, bytes, lines_with_bad_utf8, lines_left_out, documents (with lines)
            and documents_with_tokens.
        left_out: (number of the piece, file and line) of the first lines left out.
        shards: entries of the manifest.
        unigrams: (V,) int64, how often each id occurs in the shards; 0 if there are none.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    left_out: list = dataclasses.field(default_factory=list)
    shards: list = dataclasses.field(default_factory=list)
    unigrams: np.ndarray | int = 0

    def add(self, other):
        """Adds what was found elsewhere. The order makes no difference, but for that of shards."""
        self.counts.update(other.counts)
        # Lines of a piece stay in their order: all of them are from one tally.
        self.left_out = sorted(self.left_out + other.left_out, key=lambda item: item[0])
        del self.left_out[_NAMED_LINES:]
        self.shards += other.shards
        self.unigrams = self.unigrams + other.unigrams

    def leave_out(self, number, where):
        """Counts a line of piece `number` that is left out. where: str, its file and line."""
        self.counts["lines_left_out"] += 1
        if len(self.left_out) < _NAMED_LINES:
            self.left_out.append((number, where))

    @property
    def documents(self):
        """Documents in the shards."""
        return sum(shard["counts"]["documents"] for shard in self.shards)

    def sorted_shards(self):
        """The entries of the shards in the order of the corpus: 00007, 00007-1, 00008."""
        return sorted(self.shards, key=lambda e: [int(part) for part in e["name"].split("-")])


def shard_name(number, part=0):
    """Name of a shard's files: of piece `number`, and, if it makes several shards, which."""
    return f"{number:05d}" + (f"-{part}" if part else "")


def write_shard(folder, name, vocab_size, batches, tally):
    """Writes a shard, whole or not at all, and adds it to a tally.

    Args:
        folder: local or remote, existing. name: of the shard. vocab_size: V.
        batches: iterable of ids, lengths and starts_document, as for `ShardWriter.write`.
    """
    with storage.staged(folder) as local:
        writer = ShardWriter(local, name, vocab_size)
        for batch in batches:
            writer.write(*batch)
        entry = writer.close()
    tally.shards += [entry] if entry["counts"]["ids"] else []
    tally.unigrams = tally.unigrams + writer.unigrams


@dataclasses.dataclass(frozen=True)
class ShardBuilder:
    """Makes shards of pieces. Can be sent to another process.

    Args:
        fingerprint: of the tokenizer. vocab: tuple of its entries. settings: dict of them.
        skip_bad_lines: leave JSON lines without a text out, instead of ending with an error.
    """

    fingerprint: str
    vocab: tuple = dataclasses.field(compare=False)
    settings: dict = dataclasses.field(compare=False)
    skip_bad_lines: bool = False

    @classmethod
    def of(cls, tokenizer, skip_bad_lines=False):
        """That of a BertTokenizer."""
        vocab = tuple(tokenizer.vocab)
        return cls(tokenizer.fingerprint, vocab, tokenizer.settings, skip_bad_lines)

    def write_shard(self, number, piece, folder):
        """Writes the shard of a piece, whole or not at all. Returns a Tally; no tokens, no shard.

        Args:
            number: of the piece in the input. piece: TextPiece. folder: local or remote, existing.
        """
        tally = Tally()
        batches = self._batches(number, piece, tally)
        write_shard(folder, shard_name(number), len(self.vocab), batches, tally)
        tally.counts["documents_with_tokens"] = tally.documents
        return tally

    def _batches(self, number, piece, tally):
        """Ids of sentences, tokens of each, and which of them start a document."""
        tokenize, counts = _sentence_tokenizer(self), tally.counts
        leave_out = functools.partial(tally.leave_out, number) if self.skip_bad_lines else None
        sentences, starts, size, new_document = [], [], 0, True
        for line in read_lines(piece, leave_out):
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
def _sentence_tokenizer(worker):
    """Function of a list of str that returns their ids, one after the other, and their lengths."""
    tokenizer = BertTokenizer(worker.vocab, **worker.settings)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize(sentences):
        ids = tokenizer.tokenize(sentences)
        return ids.flat_values, ids.row_lengths()

    return lambda sentences: [values.numpy() for values in tokenize(sentences)]
