"""Local copies of remote folders, fetched once and kept."""

import concurrent.futures
import fcntl
import hashlib
import os
import pathlib

from kbert.errors import UserError
from kbert.utils import atomic, storage
from kbert.utils.formats import sha256_of

_FILES_AT_ONCE = 8


def cache_folder():
    """Where fetched files are kept: $KBERT_CACHE, else ~/.cache/kbert."""
    return pathlib.Path(os.environ.get("KBERT_CACHE") or "~/.cache/kbert").expanduser()


def fetch(url, manifest_name, manifest, hashes, cache_dir=None, report=None):
    """The pathlib.Path of a local folder with the files of a remote one.

    The folder is named by the content of the manifest, so a remote folder that was written anew is
    fetched anew. It gets its name when every file is there and has its checksum; what came before
    fetching was broken off is kept for the next time. Processes of one machine fetch once.

    Args:
        url: the remote folder. manifest_name: name of the file that tells what is in it.
        manifest: bytes of that file. hashes: dict of name -> SHA-256 of the other files.
        cache_dir: where to keep it; None = `cache_folder()`.
        report: called with a line of text before anything is fetched.

    Raises:
        UserError: a file is missing, cannot be read, or is not what the manifest says.
    """
    name = f"{url.rstrip('/').rpartition('/')[2]}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    folder = pathlib.Path(cache_dir or cache_folder()).expanduser() / name
    partial = folder.with_name(f"{name}.partial")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # another process fetched it meanwhile
            return folder
        partial.mkdir(exist_ok=True)
        if report:
            report(f"fetching {url}, once; it is kept in {folder}")
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
