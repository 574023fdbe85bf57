"""Writes the shards of a prepared corpus in batches, and memory-maps their files.

NAME.ids             (tokens,) ids of the shard, uint16 if V <= 65,536, else int32
NAME.sentences       (sentences,) int64, index of each sentence's first token in the shard
NAME.documents       (documents,) int64, index of each document's first token in the shard
"""

import dataclasses
import hashlib
import os
import pathlib
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from kbert.errors import UserError
from kbert.utils import storage

PARTS = ("ids", "sentences", "documents")


def ids_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of the ids: uint16 if every id fits, else int32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


class ShardWriter:
    """Writes one shard in batches of sentences, so that it need not fit into memory.

    Attributes:
        name: name of the shard.
        unigrams: (V,) int64, number of occurrences of each id so far.
    """

    unigrams: np.ndarray

    def __init__(self, folder: str | os.PathLike[str], name: str, vocab_size: int) -> None:
        self.name = name
        self._dtype = ids_dtype(vocab_size)
        self._files = {part: open(pathlib.Path(folder) / f"{name}.{part}", "wb") for part in PARTS}
        self._hashes = {part: hashlib.sha256() for part in PARTS}
        self._counts = dict.fromkeys(PARTS, 0)
        # Numbers of the documents of the last sentence and of the last sentence with tokens.
        self._last_number = self._last_full_number = 0
        self.unigrams = np.zeros(vocab_size, np.int64)

    def write(self, ids: np.ndarray, lengths: np.ndarray, starts_document: np.ndarray) -> None:
        """Appends one or more sentences.

        Args:
            ids: (T,) ids of all sentences.
            lengths: (S,) tokens per sentence; sentences without tokens are skipped.
            starts_document: (S,) bool, whether each sentence starts a document.
        """
        full = lengths > 0
        offsets = (self._counts["ids"] + np.cumsum(lengths) - lengths)[full]
        # The first sentence of a document is also skipped if it has no tokens. A document therefore
        # starts at its first sentence with tokens.
        numbers = np.cumsum(starts_document) + self._last_number
        self._last_number = numbers[-1]
        numbers = numbers[full]
        first = np.diff(numbers, prepend=self._last_full_number) > 0
        self._last_full_number = numbers[-1] if len(numbers) else self._last_full_number
        self._append("documents", offsets[first], "<i8")
        self._append("sentences", offsets, "<i8")
        self._append("ids", ids, self._dtype)
        self.unigrams += np.bincount(ids, minlength=len(self.unigrams))

    def _append(self, part, values, dtype):
        data = np.ascontiguousarray(values, dtype).tobytes()
        self._files[part].write(data)
        self._hashes[part].update(data)
        self._counts[part] += len(values)

    def close(self) -> dict[str, typing.Any]:
        """Closes the files, removes them if they are empty, and returns the manifest's entry."""
        for file in self._files.values():
            file.close()
            if not self._counts["ids"]:
                os.remove(file.name)
        hashes = {part: digest.hexdigest() for part, digest in self._hashes.items()}
        return {"name": self.name, "counts": self._counts, "sha256": hashes}


@dataclasses.dataclass(frozen=True)
class Shard:
    """The arrays of one shard, memory-mapped, in the order of `PARTS`."""

    ids: np.ndarray  # (tokens,) uint16 or int32
    sentences: np.ndarray  # (sentences,) int64, index in `ids` of each sentence's first token
    documents: np.ndarray  # (documents,) int64, index in `ids` of each document's first token


def open_shard(
    folder: str | os.PathLike[str], entry: Mapping[str, typing.Any], vocab_size: int
) -> Shard:
    """Opens the shard that an entry of the manifest describes."""
    check_shards(folder, [entry], vocab_size)
    files = _files(folder, entry, vocab_size)
    return Shard(*(np.memmap(path, dtype, "r", shape=(n,)) for path, dtype, n in files))


def check_shards(
    folder: str | os.PathLike[str], entries: Sequence[Mapping[str, typing.Any]], vocab_size: int
) -> None:
    """Checks that the files of shards, local or remote, exist and have the right sizes."""
    files = [file for entry in entries for file in _files(folder, entry, vocab_size)]
    try:
        stats = storage.stat_all([path for path, _, _ in files])
    except OSError as error:
        raise damaged_error(error.filename, error.strerror) from error
    for (path, dtype, count), (size, _) in zip(files, stats, strict=True):
        if size != count * dtype.itemsize:
            raise damaged_error(path, f"it has {size} bytes, not {count * dtype.itemsize}")


def _files(folder, entry, vocab_size):
    """Yields the path, dtype and number of elements of each array, in the order of `PARTS`."""
    for part in PARTS:
        dtype = ids_dtype(vocab_size) if part == "ids" else np.dtype("<i8")
        yield os.path.join(folder, f"{entry['name']}.{part}"), dtype, entry["counts"][part]


def damaged_error(path: str | os.PathLike[str], reason: str | None) -> UserError:
    """Returns the UserError to raise for a damaged file of a corpus."""
    return UserError(f"the corpus file {path} is damaged: {reason}. Prepare the text again.")
