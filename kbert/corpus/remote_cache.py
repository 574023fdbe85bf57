"""Caches remote folders, so that each is downloaded only once."""

import concurrent.futures
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping

from kbert.errors import UserError
from kbert.utils import atomic, storage
from kbert.utils.formats import sha256_of

_FILES_AT_ONCE = 8


def cache_folder() -> pathlib.Path:
    """Returns the path of the cache: $KBERT_CACHE or, if unset, ~/.cache/kbert."""
    return pathlib.Path(os.environ.get("KBERT_CACHE") or "~/.cache/kbert").expanduser()


def fetch(
    url: str | os.PathLike[str],
    manifest_name: str,
    manifest: bytes,
    hashes: Mapping[str, str],
    cache_dir: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
) -> pathlib.Path:
    """Returns the path of a local copy of a remote folder; downloads it if it is not cached.

    The name of the local folder contains a hash of the manifest, so a remote folder whose content
    has changed is downloaded again. The download is moved into place after all checksums match; the
    files of an interrupted download are kept and reused. Processes on the same machine share one
    download. `manifest` is the content of the file `manifest_name`, and `hashes` has the SHA-256 of
    all other files by name.
    """
    name = f"{url.rstrip('/').rpartition('/')[2]}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    folder = pathlib.Path(cache_dir or cache_folder()).expanduser() / name
    partial = folder.with_name(f"{name}.partial")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # another process has downloaded it in the meantime
            return folder
        partial.mkdir(exist_ok=True)
        if report:
            report(f"downloading {url} to {folder}, which later runs reuse")
        left = [item for item in hashes.items() if not (partial / item[0]).exists()]
        with concurrent.futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(lambda item: _fetch_file(url, partial, *item), left))
        (partial / manifest_name).write_bytes(manifest)
        partial.rename(folder)
    return folder


def _fetch_file(url, folder, name, expected):
    source, target = f"{url.rstrip('/')}/{name}", folder / name
    with atomic.file(target) as scratch:
        try:
            storage.copy(source, scratch)
        except FileNotFoundError:
            raise UserError(
                f"the corpus file {source} is missing. Prepare the text again."
            ) from None
        if sha256_of(scratch) != expected:
            raise UserError(
                f"the corpus file {source} is damaged: its checksum differs from the manifest's. "
                f"Prepare the text again."
            )
