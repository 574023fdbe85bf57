"""The prepared corpus on disk: token ids with sentence and document boundaries, memory-mapped.

corpus.json          manifest: counts, vocabulary fingerprint, SHA-256 of every file
vocab.txt            the vocabulary
unigrams.npy         (V,) int64, how often each id occurs
00000.ids            ids of the shard, uint16 when V <= 65,536, else int32
00000.sentences      (sentences,) int64, index of each sentence's first token in the shard
00000.documents      (documents,) int64, the same for documents
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from kbert.errors import UserError

MANIFEST = "corpus.json"
_FORMAT = "kbert corpus 1"
_PARTS = ("ids", "sentences", "documents")
_OTHERS = ("vocab.txt", "unigrams.npy")


def ids_dtype(vocab_size):
    """Smallest dtype of the two that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


class ShardWriter:
    """Writes one shard, a batch of sentences at a time; memory does not grow with the ids."""

    def __init__(self, folder, name, vocab_size):
        self.name = name
        self._dtype = ids_dtype(vocab_size)
        self._files = {part: open(pathlib.Path(folder) / f"{name}.{part}", "wb") for part in _PARTS}
        self._hashes = {part: hashlib.sha256() for part in _PARTS}
        self._counts = dict.fromkeys(_PARTS, 0)
        self._last_number = self._last_full_number = 0  # document of the last sentence written
        self.unigrams = np.zeros(vocab_size, np.int64)

    def write(self, ids, lengths, starts_document):
        """Appends sentences.

        Args:
            ids: (T,) ids of all sentences. lengths: (S,) tokens of each; sentences without tokens
                are left out. starts_document: (S,) bool, which sentence starts a document.
        """
        full = lengths > 0
        offsets = (self._counts["ids"] + np.cumsum(lengths) - lengths)[full]
        # Documents are numbered, so that one whose first sentence is empty starts at its second.
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

    def close(self):
        """Finishes the files and returns the shard's entry in the manifest."""
        for file in self._files.values():
            file.close()
        hashes = {part: digest.hexdigest() for part, digest in self._hashes.items()}
        return {"name": self.name, "counts": self._counts, "sha256": hashes}


def write_manifest(folder, shards, vocab_size, fingerprint, lower_case, unigrams, **extra):
    """Writes the manifest and the unigram counts, last of all."""
    np.save(pathlib.Path(folder) / "unigrams.npy", unigrams)
    totals = {part: sum(shard["counts"][part] for shard in shards) for part in _PARTS}
    manifest = {
        "format": _FORMAT,
        "sha256": {name: _sha256(pathlib.Path(folder) / name) for name in _OTHERS},
        "documents": totals["documents"],
        "sentences": totals["sentences"],
        "tokens": totals["ids"],
        "vocab_size": vocab_size,
        "vocab_fingerprint": fingerprint,
        "lower_case": lower_case,
        **extra,
        "shards": shards,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (pathlib.Path(folder) / MANIFEST).write_text(text, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Shard:
    """The arrays of one shard, memory-mapped."""

    ids: np.ndarray  # (tokens,) uint16 or int32
    sentences: np.ndarray  # (sentences,) int64, first token of each
    documents: np.ndarray  # (documents,) int64, first token of each


class Corpus:
    """A prepared corpus, opened for reading. Nothing but the document index is held in memory.

    Args:
        folder: what `kbert.data.prepare` wrote.
        verify: compare every file with its checksum (about a second per GB).

    Attributes:
        manifest: the dict of `corpus.json`.   vocab_file: path of its vocabulary.
        document_starts: (documents + 1,) int64, first token of each document in the whole corpus.
        shards: list of Shard.   shard_starts: (shards + 1,) int64, first token of each.

    Raises:
        UserError: not a prepared corpus, or a file is missing or damaged (it is named).
    """

    def __init__(self, folder, verify=True):
        self.folder = pathlib.Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.vocab_file = self.folder / "vocab.txt"
        try:
            self._open(verify)
        except (KeyError, TypeError) as error:
            raise _damaged(self.folder / MANIFEST, f"it lacks {error}") from error

    def _open(self, verify):
        if verify:
            self._verify(self.manifest["sha256"])
        dtype = ids_dtype(self.manifest["vocab_size"])
        self.shards, starts, documents = [], [0], []
        for entry in self.manifest["shards"]:
            if verify:
                hashes = entry["sha256"]
                self._verify({f"{entry['name']}.{part}": hashes[part] for part in _PARTS})
            parts = {
                part: self._map(entry, part, dtype if part == "ids" else np.dtype("<i8"))
                for part in _PARTS
            }
            self.shards.append(Shard(**parts))
            documents.append(np.asarray(parts["documents"]) + starts[-1])
            starts.append(starts[-1] + entry["counts"]["ids"])
        self._ids = [np.asarray(shard.ids) for shard in self.shards]  # a memmap is slow to slice
        self.shard_starts = np.asarray(starts, np.int64)
        self.document_starts = np.concatenate([*documents, self.shard_starts[-1:]])

    def _verify(self, hashes):
        for name, expected in hashes.items():
            path = self.folder / name
            try:
                found = _sha256(path)
            except OSError as error:
                raise _damaged(path, error.strerror) from error
            if found != expected:
                raise _damaged(path, "its checksum differs from the manifest's")

    def _map(self, entry, part, dtype):
        path, count = self.folder / f"{entry['name']}.{part}", entry["counts"][part]
        try:
            found = path.stat().st_size
        except OSError as error:
            raise _damaged(path, error.strerror) from error
        if found != count * dtype.itemsize:
            raise _damaged(path, f"it has {found} bytes, not {count * dtype.itemsize}")
        return np.memmap(path, dtype, "r", shape=(count,))

    @property
    def tokens(self):
        """Tokens of the corpus, special tokens not counted."""
        return int(self.shard_starts[-1])

    @property
    def documents(self):
        """Documents of the corpus."""
        return len(self.document_starts) - 1

    def read(self, first, stop):
        """(stop - first,) ids of a span, counted from the start of the corpus; within one shard."""
        shard = np.searchsorted(self.shard_starts, first, side="right") - 1
        offset = self.shard_starts[shard]
        return self.shards[shard].ids[first - offset : stop - offset]

    def read_all(self, spans):
        """Ids of spans, one after the other; (N, 2) as for `read`."""
        shards = np.searchsorted(self.shard_starts, spans[:, 0], side="right") - 1
        spans = (spans - self.shard_starts[shards, None]).tolist()
        rows = zip(shards.tolist(), spans, strict=True)
        return np.concatenate([self._ids[shard][a:b] for shard, (a, b) in rows])

    def unigram_entropy(self):
        """Entropy of the distribution of single tokens, in nats.

        No model that ignores the context has a lower MLM loss on this text: what is below it was
        learnt from context.
        """
        counts = np.load(self.folder / "unigrams.npy").astype(np.float64)
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log(share)).sum())

    def check_tokenizer(self, tokenizer):
        """Raises UserError unless the corpus was prepared with the vocabulary of `tokenizer`."""
        if tokenizer.fingerprint != self.manifest["vocab_fingerprint"]:
            raise UserError(
                f"the corpus {self.folder} was prepared with another vocabulary "
                f"({self.manifest['vocab_size']} entries, lower_case="
                f"{str(self.manifest['lower_case']).lower()}). Leave out --vocab_file to use its "
                f"own, {self.vocab_file}, or prepare the text again."
            )


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder):
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a prepared corpus: it has no {MANIFEST}.") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise UserError(f"{path} is not of the format {_FORMAT!r}. Prepare the text again.")
    return manifest


def _damaged(path, reason):
    return UserError(f"the corpus file {path} is damaged: {reason}. Prepare the text again.")


def corpus_fingerprint(corpus):
    """SHA-256 over the checksums of all shards: equal for corpora with the same content."""
    text = json.dumps([shard["sha256"] for shard in corpus.manifest["shards"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
