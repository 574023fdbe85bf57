"""The prepared corpus on disk: token ids with sentence and document boundaries, memory-mapped.

corpus.json          manifest: counts, vocabulary fingerprint, SHA-256 of every file
vocab.txt            the vocabulary, and tokenizer_config.json, how text is split into words
unigrams.npy         (V,) int64, how often each id occurs
00000.ids            ids of the shard, uint16 when V <= 65,536, else int32
00000.sentences      (sentences,) int64, index of each sentence's first token in the shard
00000.documents      (documents,) int64, the same for documents
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import resource

import numpy as np

from kbert.corpus.remote_cache import fetch
from kbert.errors import UserError
from kbert.utils import atomic, storage
from kbert.utils.formats import sha256_of

MANIFEST = "corpus.json"
_FORMAT = "kbert corpus 1"
_PARTS = ("ids", "sentences", "documents")
_MEMBERS = ("sha256", "vocab_size", "vocab_fingerprint", "lower_case", "shards")


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
        """The shard's entry in the manifest; finishes the files, removes them if they are empty."""
        for file in self._files.values():
            file.close()
            if not self._counts["ids"]:
                os.remove(file.name)
        hashes = {part: digest.hexdigest() for part, digest in self._hashes.items()}
        return {"name": self.name, "counts": self._counts, "sha256": hashes}


def write_manifest(folder, tokenizer, shards, unigrams, **extra):
    """Writes the unigram counts and, last of all, the manifest, which it returns.

    Args:
        folder: holds the vocabulary; what is in it besides shards gets a checksum.
        tokenizer: BertTokenizer. shards: their entries, in order. unigrams: (V,) int64.
        extra: more keys of the manifest.
    """
    folder = pathlib.Path(folder)
    array = io.BytesIO()  # numpy's own writing does not say why it fails
    np.save(array, unigrams)
    (folder / "unigrams.npy").write_bytes(array.getbuffer())
    others = sorted(path for path in folder.iterdir() if path.suffix[1:] not in _PARTS)
    totals = {part: sum(shard["counts"][part] for shard in shards) for part in _PARTS}
    manifest = {
        "format": _FORMAT,
        "sha256": {path.name: sha256_of(path) for path in others},
        "documents": totals["documents"],
        "sentences": totals["sentences"],
        "tokens": totals["ids"],
        "vocab_size": tokenizer.vocab_size,
        "vocab_fingerprint": tokenizer.fingerprint,
        "lower_case": tokenizer.lower_case,
        **extra,
        "shards": shards,
    }
    atomic.write_json(folder / MANIFEST, manifest, indent=1, ensure_ascii=False)
    return manifest


@dataclasses.dataclass(frozen=True)
class Shard:
    """The arrays of one shard, memory-mapped, in the order of `_PARTS`."""

    ids: np.ndarray  # (tokens,) uint16 or int32
    sentences: np.ndarray  # (sentences,) int64, first token of each
    documents: np.ndarray  # (documents,) int64, first token of each


def open_shard(folder, entry, vocab_size):
    """The Shard of an entry of the manifest. Raises UserError as `check_shards`."""
    check_shards(folder, [entry], vocab_size)
    files = _files(folder, entry, vocab_size)
    return Shard(*(np.memmap(path, dtype, "r", shape=(n,)) for path, dtype, n in files))


def check_shards(folder, entries, vocab_size):
    """Raises UserError unless every file of the shards, local or remote, is there in full."""
    files = [file for entry in entries for file in _files(folder, entry, vocab_size)]
    try:
        stats = storage.stat_all([path for path, _, _ in files])
    except OSError as error:
        raise _damaged(error.filename, error.strerror) from error
    for (path, dtype, count), (size, _) in zip(files, stats, strict=True):
        if size != count * dtype.itemsize:
            raise _damaged(path, f"it has {size} bytes, not {count * dtype.itemsize}")


def _files(folder, entry, vocab_size):
    """Path, dtype and number of values of each file of a shard, in the order of `_PARTS`."""
    for part in _PARTS:
        dtype = ids_dtype(vocab_size) if part == "ids" else np.dtype("<i8")
        yield os.path.join(folder, f"{entry['name']}.{part}"), dtype, entry["counts"][part]


class Corpus:
    """A prepared corpus, opened for reading. Nothing but the document index is held in memory.

    Args:
        folder: what `kbert.corpus.prepare` wrote. A remote one, such as gs://BUCKET/CORPUS, is
            fetched once, and verified, since memory mapping needs local files.
        verify: compare every file with its checksum (about a second per GB).
        cache_dir: where what is fetched is kept; None = $KBERT_CACHE, else ~/.cache/kbert.
        report: called with a line of text before anything is fetched.

    Attributes:
        folder: the local one.
        manifest: the dict of `corpus.json`.   vocab_file: path of its vocabulary.
        document_starts: (documents + 1,) int64, first token of each document in the whole corpus.
        shards: list of Shard.   shard_starts: (shards + 1,) int64, first token of each.

    Raises:
        UserError: not a prepared corpus, or a file is missing or damaged (it is named).
    """

    def __init__(self, folder, verify=True, cache_dir=None, report=None):
        data, self.manifest = _read_manifest(folder)
        try:
            hashes = _file_hashes(self.manifest)
            if storage.is_remote(folder):
                folder = fetch(folder, MANIFEST, data, hashes, cache_dir, report)
            self.folder = pathlib.Path(folder)
            self.vocab_file = self.folder / "vocab.txt"
            if verify:
                self._verify(hashes)
            self._open()
        except UserError:
            raise
        except KeyError as error:
            raise _damaged(os.path.join(folder, MANIFEST), f"it lacks {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise _damaged(os.path.join(folder, MANIFEST), str(error)) from error

    def _open(self):
        self.shards, starts, documents = [], [0], []
        _allow_open_files(len(_PARTS) * len(self.manifest["shards"]))
        for entry in self.manifest["shards"]:
            self.shards.append(open_shard(self.folder, entry, self.manifest["vocab_size"]))
            documents.append(np.asarray(self.shards[-1].documents) + starts[-1])
            starts.append(starts[-1] + entry["counts"]["ids"])
        self._ids = [np.asarray(shard.ids) for shard in self.shards]  # a memmap is slow to slice
        self.shard_starts = np.asarray(starts, np.int64)
        self.document_starts = np.concatenate([*documents, self.shard_starts[-1:]])

    def _verify(self, hashes):
        for name, expected in hashes.items():
            path = self.folder / name
            try:
                checksum = sha256_of(path)
            except OSError as error:
                raise _damaged(path, error.strerror) from error
            if checksum != expected:
                raise _damaged(path, "its checksum differs from the manifest's")

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
        return self.read_all(np.array([[first, stop]]))

    def read_all(self, spans):
        """Ids of spans, one after the other; (N, 2) as for `read`."""
        shards = np.searchsorted(self.shard_starts, spans[:, 0], side="right") - 1
        spans = (spans - self.shard_starts[shards, None]).tolist()
        rows = zip(shards.tolist(), spans, strict=True)
        return np.concatenate([self._ids[shard][a:b] for shard, (a, b) in rows])

    def unigram_entropy(self):
        """Entropy of the distribution of single tokens, in nats.

        No model that ignores the context has a lower MLM loss on this text.
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


def _allow_open_files(count):
    """Lets the process keep so many files mapped: each holds one of its open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 1024
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def is_prepared(path):
    """Whether a path, local or remote, is the folder of a prepared corpus."""
    return storage.exists(os.path.join(path, MANIFEST))


def _file_hashes(manifest):
    """dict of name -> SHA-256 of every file but the manifest."""
    hashes = dict(manifest["sha256"])
    for entry in manifest["shards"]:
        hashes |= {f"{entry['name']}.{part}": entry["sha256"][part] for part in _PARTS}
    elsewhere = [name for name in hashes if os.path.basename(name) != name]
    if elsewhere:
        raise UserError(f"{MANIFEST} names a file outside of its folder, {elsewhere[0]!r}.")
    return hashes


def _read_manifest(folder):
    path = os.path.join(folder, MANIFEST)
    try:
        with storage.open_stream(path) as file:
            data = file.read()
        manifest = json.loads(data)
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a prepared corpus: it has no {MANIFEST}.") from error
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise UserError(f"{path} is not of the format {_FORMAT!r}. Prepare the text again.")
    for name in _MEMBERS:
        if name not in manifest:
            raise _damaged(path, f"it lacks {name!r}")
    return data, manifest


def _damaged(path, reason):
    return UserError(f"the corpus file {path} is damaged: {reason}. Prepare the text again.")


def corpus_fingerprint(corpus):
    """SHA-256 over the checksums of all shards: equal for corpora with the same content."""
    text = json.dumps([shard["sha256"] for shard in corpus.manifest["shards"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
