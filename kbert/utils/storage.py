"""Local and remote paths: gs://, and whatever other schemes TensorFlow has built in.

A path with a scheme is remote (`kbert.utils.remote_storage`); all others are files of the operating
system. Raises UserError if a remote path cannot be used, and GaveUp if it fails again and again.
"""

import concurrent.futures
import contextlib
import glob as local_glob
import os
import re
import shutil
import tempfile

from kbert.errors import UserError

_STATS_AT_ONCE = 16  # a request takes tens of milliseconds


class GaveUp(UserError):
    """A storage failed, again and again, in a way that may still pass."""


def _remote():
    """The module for remote paths. It imports TensorFlow, which takes seconds."""
    from kbert.utils import remote_storage

    return remote_storage


def is_remote(path):
    """Whether a path has a scheme, such as gs://BUCKET/FOLDER."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)) is not None


def glob(pattern):
    """Paths that match a pattern, sorted."""
    if not is_remote(pattern):
        return sorted(local_glob.glob(pattern))
    return sorted(_remote().glob(pattern))


def is_folder(path):
    """Whether a path is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    return _remote().is_folder(path)


def exists(path):
    """Whether there is a file or a folder."""
    if not is_remote(path):
        return os.path.exists(path)
    return _remote().exists(path)


def list_folder(path):
    """Names in a folder, sorted; none where there is no folder."""
    if not is_folder(path):
        return []
    names = _remote().list_folder(path) if is_remote(path) else os.listdir(path)
    return sorted(filter(None, (name.rstrip("/") for name in names)))


def stat(path):
    """Size in bytes and time of change in nanoseconds.

    Raises:
        OSError: no such file. UserError: see `open_stream`.
    """
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    return _remote().stat(path)


def stat_all(paths):
    """`stat` of each path, in their order."""
    with concurrent.futures.ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        return list(pool.map(stat, paths))


def check_free(path, hint="Remove it, or name another folder."):
    """Checks that a folder that is to be made is missing or empty.

    Raises:
        UserError: it is neither; the message ends with `hint`.
    """
    if list_folder(path) or (exists(path) and not is_folder(path)):
        raise UserError(f"{path} exists and is not empty. {hint}")


def open_stream(path):
    """A file opened for reading bytes, buffered; can be sought.

    Raises:
        OSError: no such file, or it cannot be read. UserError: a remote one cannot be read, when
            it is opened or later; the scheme is not built into this TensorFlow.
    """
    if not is_remote(path):
        return open(path, "rb")
    return _remote().open_stream(path)


def copy(source, target):
    """Copies a file between any two places, replacing the target; their sizes are compared.

    On object stores the target is whole or not there; elsewhere it grows, so give it a name that
    nobody reads.

    Raises:
        OSError: no such source. UserError: see `open_stream`.
    """
    _remote().copy(source, target)


def make_folder(path):
    """Makes a folder and those above it; one that is there already is fine."""
    if is_remote(path):
        _remote().make_folder(path)
    else:
        os.makedirs(path, exist_ok=True)


def remove(path):
    """Removes a file or a folder with all that is in it; one that is not there is fine."""
    if not is_remote(path):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        return
    with contextlib.suppress(FileNotFoundError):
        _remote().remove(path)


@contextlib.contextmanager
def staged(folder, last=None):
    """A local folder to write in; what is in it when the block ends goes into `folder`.

    Each file arrives whole, and none if the block fails; so whoever does the same work twice, or at
    the same time, does no harm.

    Args:
        folder: local or remote; must exist if it is local.
        last: name of the file that goes last, which tells readers that the others are there.
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
