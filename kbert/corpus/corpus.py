"""The prepared corpus on disk: token ids with sentence and document boundaries, memory-mapped.

corpus.json          manifest: counts, vocabulary fingerprint, SHA-256 of all other files
vocab.txt            the vocabulary; tokenizer_config.json has the tokenizer's settings
unigrams.npy         (V,) int64, number of occurrences of each id
00000.ids, 00000.sentences, 00000.documents: a shard, see `kbert.corpus.shards`
"""

import hashlib
import io
import json
import os
import pathlib
import resource
import typing
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kbert.corpus.remote_cache import fetch
from kbert.corpus.shards import PARTS, Shard, damaged_error, open_shard
from kbert.errors import UserError
from kbert.utils import atomic, storage
from kbert.utils.formats import check_format, sha256_of, with_format

if typing.TYPE_CHECKING:
    from kbert.tokenizer.tokenizer import BertTokenizer

MANIFEST = "corpus.json"
_MEMBERS = ("sha256", "vocab_size", "vocab_fingerprint", "lower_case", "shards")


def write_manifest(
    folder: str | os.PathLike[str],
    tokenizer: "BertTokenizer",
    shards: Sequence[Mapping[str, typing.Any]],
    unigrams: np.ndarray,
    **extra: object,
) -> dict[str, typing.Any]:
    """Writes the unigram counts, (V,), then the manifest, which is returned."""
    folder = pathlib.Path(folder)
    array = io.BytesIO()  # because np.save to a path does not report why it fails
    np.save(array, unigrams)
    (folder / "unigrams.npy").write_bytes(array.getbuffer())
    others = sorted(path for path in folder.iterdir() if path.suffix[1:] not in PARTS)
    totals = {part: sum(shard["counts"][part] for shard in shards) for part in PARTS}
    manifest = {
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
    manifest = with_format(MANIFEST, manifest)
    atomic.write_json(folder / MANIFEST, manifest, indent=1, ensure_ascii=False)
    return manifest


class Corpus:
    """A prepared corpus, opened for reading; only document and shard starts are held in memory.

    Args:
        folder: output of `kbert.corpus.prepare`. A remote folder, such as gs://BUCKET/CORPUS, is
            downloaded once and verified, because memory mapping needs local files.
        verify: whether to compare every file with its checksum, which takes about a second per GB.
        cache_dir: folder for downloads; None means $KBERT_CACHE or, if unset, ~/.cache/kbert.
        report: called with a line of text before a download.

    Attributes:
        folder: the local folder.
        manifest: content of `corpus.json`.
        vocab_file: path of the vocabulary.
        document_starts: (documents + 1,) int64, index in the corpus of the first token of each
            document, then the number of tokens.
        shards: the shards, in order.
        shard_starts: (shards + 1,) int64, index in the corpus of the first token of each shard,
            then the number of tokens.

    Raises:
        UserError: the folder is not a prepared corpus, or one of its files is missing or damaged.
    """

    manifest: dict[str, typing.Any]
    folder: pathlib.Path
    vocab_file: pathlib.Path
    shards: list[Shard]
    shard_starts: np.ndarray
    document_starts: np.ndarray

    def __init__(
        self,
        folder: str | os.PathLike[str],
        verify: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
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
            raise damaged_error(os.path.join(folder, MANIFEST), f"it lacks {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise damaged_error(os.path.join(folder, MANIFEST), str(error)) from error

    def _open(self):
        self.shards, starts, documents = [], [0], []
        _allow_open_files(len(PARTS) * len(self.manifest["shards"]))
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
                raise damaged_error(path, error.strerror) from error
            if checksum != expected:
                raise damaged_error(path, "its checksum differs from the manifest's")

    @property
    def tokens(self) -> int:
        """Number of tokens; the corpus contains no [CLS] and [SEP]."""
        return int(self.shard_starts[-1])

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.document_starts) - 1

    def read(self, first: int, stop: int) -> np.ndarray:
        """Returns the (stop - first,) ids of the tokens [first, stop), which must be in one shard.

        The dtype is uint16 or int32; see `kbert.corpus.shards`.
        """
        return self.read_all(np.array([[first, stop]]))

    def read_all(self, spans: np.ndarray) -> np.ndarray:
        """Returns the concatenated ids of spans, the rows [first, stop) of an (N, 2) array.

        Each span must lie within one shard.
        """
        shards = np.searchsorted(self.shard_starts, spans[:, 0], side="right") - 1
        spans = (spans - self.shard_starts[shards, None]).tolist()
        rows = zip(shards.tolist(), spans, strict=True)
        return np.concatenate([self._ids[shard][a:b] for shard, (a, b) in rows])

    def unigram_entropy(self) -> float:
        """Returns the entropy of the token frequencies, in nats.

        The expected MLM loss of a model that ignores the context cannot be lower.
        """
        counts = np.load(self.folder / "unigrams.npy").astype(np.float64)
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log(share)).sum())

    def check_tokenizer(self, tokenizer: "BertTokenizer") -> None:
        """Checks that the corpus was prepared with the vocabulary and settings of `tokenizer`.

        Raises:
            UserError: the vocabulary or a setting differs.
        """
        if tokenizer.fingerprint != self.manifest["vocab_fingerprint"]:
            raise UserError(
                f"the corpus {self.folder} was prepared with another vocabulary or other tokenizer "
                f"settings ({self.manifest['vocab_size']} entries, lower_case="
                f"{str(self.manifest['lower_case']).lower()}). Remove --vocab_file to use the "
                f"corpus's own, {self.vocab_file}, or prepare the text again."
            )


def _allow_open_files(count):
    """Raises the limit on open files, because `count` memory-mapped files stay open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 1024
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path, local or remote, is the folder of a prepared corpus."""
    return storage.exists(os.path.join(path, MANIFEST))


def _file_hashes(manifest):
    """Returns a dict of name -> SHA-256 of every file except the manifest."""
    hashes = dict(manifest["sha256"])
    for entry in manifest["shards"]:
        hashes |= {f"{entry['name']}.{part}": entry["sha256"][part] for part in PARTS}
    elsewhere = [name for name in hashes if os.path.basename(name) != name]
    if elsewhere:
        raise UserError(f"{MANIFEST} names a file outside its folder, {elsewhere[0]!r}.")
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
        raise damaged_error(path, str(error)) from error
    check_format(path, manifest.get("format") if isinstance(manifest, dict) else None)
    for name in _MEMBERS:
        if name not in manifest:
            raise damaged_error(path, f"it lacks {name!r}")
    return data, manifest


def corpus_fingerprint(corpus: Corpus) -> str:
    """Returns a hexadecimal SHA-256 that identifies the shards of a corpus, in order."""
    text = json.dumps([shard["sha256"] for shard in corpus.manifest["shards"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
