"""File operations on local and remote paths: gs:// and other schemes that TensorFlow supports.

A path with a scheme is remote (`kbert.utils.remote_storage`); all others are local. The functions
raise UserError if a remote path cannot be used, and RetryError if all retries fail.
"""

import concurrent.futures
import contextlib
import glob as local_glob
import io
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator

from kbert.errors import UserError

_STATS_AT_ONCE = 16  # in parallel, because a remote request takes tens of milliseconds


class RetryError(UserError):
    """All retries of an operation on remote storage failed with transient errors."""


def _remote():
    """Returns the module for remote paths. Its import takes seconds, as it imports TensorFlow."""
    from kbert.utils import remote_storage

    return remote_storage


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path has a scheme, such as gs://BUCKET/FOLDER."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)) is not None


def glob(pattern: str) -> list[str]:
    """Returns the paths that match a pattern, sorted.

    A pattern that is an existing path is taken literally. So is a local folder at its start, such
    as `data[1]` in `data[1]/*.txt`. In a local pattern, ** matches folders of any depth.
    """
    if is_remote(pattern):
        paths = sorted(_remote().glob(pattern))
        return paths or ([pattern] if re.search(r"[*?[]", pattern) and exists(pattern) else [])
    if os.path.exists(pattern):
        return [pattern]
    folder = os.path.dirname(pattern)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    rest = pattern[len(folder) :]
    paths = sorted(local_glob.glob(local_glob.escape(folder) + rest, recursive=True))
    return [path for path in paths if "**" not in rest or not os.path.isdir(path)]


def split_patterns(patterns: str) -> list[str]:
    """Returns the parts of comma-separated paths and globs, without empty ones.

    A comma in the name of an existing local file is not a separator.
    """
    parts, result = patterns.split(","), []
    while parts:
        joined = itertools.accumulate(parts, "{},{}".format)
        paths = [path.strip() for path in itertools.takewhile(lambda p: len(p) < 4096, joined)]
        sizes = [len(paths), *range(1, len(paths))]
        size = next((n for n in sizes if n and os.path.exists(paths[n - 1])), 1)
        result.append(",".join(parts[:size]).strip())
        del parts[:size]
    return list(filter(None, result))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    return _remote().is_folder(path)


def exists(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a file or a folder."""
    if not is_remote(path):
        return os.path.exists(path)
    return _remote().exists(path)


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """Returns the names in a folder, sorted; an empty list if the folder does not exist."""
    if not is_folder(path):
        return []
    names = _remote().list_folder(path) if is_remote(path) else os.listdir(path)
    return sorted(filter(None, (name.rstrip("/") for name in names)))


def files_below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the paths of all files in a folder and its subfolders, sorted within each folder."""
    for name in list_folder(folder):
        path = f"{folder}/{name}"
        if is_folder(path):
            yield from files_below(path)
        else:
            yield path


def stat(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the size in bytes and the modification time in nanoseconds.

    Raises:
        OSError: the file does not exist.
        UserError: see `open_stream`.
    """
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    return _remote().stat(path)


def stat_all(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[int, int]]:
    """Returns `stat` of each path, in order."""
    with concurrent.futures.ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        return list(pool.map(stat, paths))


def check_output_folder_is_free(
    path: str | os.PathLike[str], hint: str = "Remove it, or choose another folder."
) -> None:
    """Checks that an output folder does not exist or is empty."""
    is_file = exists(path) and not is_folder(path)
    if is_file or list_folder(path):
        raise UserError(f"{path} {'is a file' if is_file else 'exists and is not empty'}. {hint}")


def open_stream(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file for buffered, seekable reading of bytes.

    Raises:
        OSError: the file does not exist or cannot be read.
        UserError: on opening or reading: a remote file cannot be read, or TensorFlow does not
            support the scheme.
    """
    if not is_remote(path):
        return open(path, "rb")
    return _remote().open_stream(path)


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a local or remote file, replaces the target and compares the sizes.

    The copy is atomic only on object stores. Elsewhere, copy to a name that no other process reads.

    Raises:
        OSError: the source does not exist.
        UserError: see `open_stream`; or the target cannot be written.
    """
    _remote().copy(source, target)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Creates a folder and its parents; does nothing if it exists."""
    if is_remote(path):
        _remote().make_folder(path)
    else:
        os.makedirs(path, exist_ok=True)


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file or a folder with its contents; does nothing if it does not exist."""
    if not is_remote(path):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        return
    with contextlib.suppress(FileNotFoundError):
        _remote().remove(path)


@contextlib.contextmanager
def staging_folder(folder: str | os.PathLike[str], last: str | None = None) -> Iterator[str]:
    """Yields a local folder to write to; its files are moved to `folder` at the end of the block.

    Each file is moved atomically (see `copy` for remote storage), and none is moved if the block
    fails. Several processes may therefore write the same files, even concurrently. Subfolders are
    not supported.

    Args:
        folder: local or remote; a local folder must exist.
        last: name of the file to move last, so that its presence implies the other files.
    """
    remote = is_remote(folder)
    with tempfile.TemporaryDirectory(prefix=".staged-", dir=None if remote else folder) as local:
        yield local
        for name in sorted(os.listdir(local), key=lambda name: (name == last, name)):
            source, target = os.path.join(local, name), os.path.join(folder, name)
            if remote:
                copy(source, target)
            else:
                os.replace(source, target)
