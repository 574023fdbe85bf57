"""Paths of this machine and remote ones alike: gs://, and whatever else TensorFlow has built in.

A path with a scheme is remote and goes through `tf.io.gfile`; all others are files of the operating
system, as ever. What fails in a way that may pass is tried again, with waits that double.
"""

import concurrent.futures
import contextlib
import glob as local_glob
import io
import os
import random
import re
import shutil
import tempfile
import time

import tensorflow as tf

from kbert.errors import UserError

TRIES = 6
FIRST_WAIT_S = 1.0  # then 2, 4, 8, 16 s, each up to a half shorter, so that workers spread
gfile = tf.io.gfile
_CHUNK_BYTES = 1 << 20
_STATS_AT_ONCE = 16  # a request takes tens of milliseconds


class GaveUp(UserError):
    """A storage failed, again and again, in a way that may still pass."""


class _Interrupted(Exception):
    """Something is not whole."""


_MAY_PASS = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.InternalError,
    _Interrupted,
)


def is_remote(path):
    """Whether a path has a scheme, such as gs://BUCKET/FOLDER."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)) is not None


def _attempt(what, path, function, *args):
    """function(*args); what failed for a moment is tried again.

    Raises:
        UserError: no such scheme, or a failure that does not pass. GaveUp: `TRIES` that may.
        FileNotFoundError: no such file, as for local paths.
    """
    for number in range(TRIES):
        if number:
            time.sleep(FIRST_WAIT_S * 2 ** (number - 1) * random.uniform(0.5, 1))
        try:
            return function(*args)
        except _MAY_PASS as error:
            last = error
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(2, "No such file or directory", str(path)) from error
        except tf.errors.UnimplementedError as error:
            scheme = str(path).partition("://")[0]
            raise UserError(
                f"cannot {what} {path}: this TensorFlow has no file system for {scheme}:// "
                f"({_line(error)}). gs:// is built in; copy the files, or mount their storage as "
                f"a folder."
            ) from error
        except tf.errors.OpError as error:
            raise UserError(f"cannot {what} {path}: {_line(error)}.") from error
    raise GaveUp(
        f"cannot {what} {path}: gave up after {TRIES} tries, the last with: {_line(last)}."
    ) from last


def _line(error):
    message = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(message.split()).rstrip(".")


def glob(pattern):
    """Paths that match a pattern, sorted."""
    if not is_remote(pattern):
        return sorted(local_glob.glob(pattern))
    try:
        return sorted(_attempt("list", pattern, gfile.glob, pattern))
    except FileNotFoundError:
        return []


def is_folder(path):
    """Whether a path is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    try:  # gfile.isdir takes every error for a no
        return _attempt("look at", path, gfile.stat, path).is_directory
    except FileNotFoundError:
        return False


def exists(path):
    """Whether there is a file or a folder."""
    if not is_remote(path):
        return os.path.exists(path)
    return _attempt("look at", path, gfile.exists, path)


def list_folder(path):
    """Names in a folder, sorted; none where there is no folder."""
    if not is_folder(path):
        return []
    names = _attempt("list", path, _names, path) if is_remote(path) else os.listdir(path)
    return sorted(filter(None, (name.rstrip("/") for name in names)))


def _names(path):
    try:
        return gfile.listdir(path)
    except tf.errors.NotFoundError as error:  # so, too, if the folder cannot be looked at
        raise _Interrupted(f"{path} was there a moment ago") from error


def stat(path):
    """Size in bytes and time of change in nanoseconds.

    Raises:
        OSError: no such file. UserError: see `open_stream`.
    """
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    status = _attempt("look at", path, gfile.stat, path)
    return status.length, status.mtime_nsec


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
    return io.BufferedReader(_RemoteFile(path), _CHUNK_BYTES)


class _RemoteFile(io.RawIOBase):
    """Reads a remote file; where reading breaks off it is opened again and goes on."""

    def __init__(self, path):
        super().__init__()
        self._path, self._offset, self._file = path, 0, None
        self._size, _ = stat(path)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        self._offset, self._file = start + offset, None
        return self._offset

    def tell(self):
        return self._offset

    def readinto(self, buffer):
        count = min(len(buffer), self._size - self._offset)
        if count <= 0:
            return 0
        data = _attempt("read", self._path, self._read, count)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _read(self, count):
        try:
            if self._file is None:
                self._file = gfile.GFile(self._path, "rb")
                self._file.seek(self._offset)
            data = self._file.read(count)
            if not data:
                raise _Interrupted(f"it ended after {self._offset} of {self._size} bytes")
        except BaseException:
            self._file = None
            raise
        return data


def copy(source, target):
    """Copies a file between any two places, replacing the target; their sizes are compared.

    On object stores the target is whole or not there; elsewhere it grows, so give it a name that
    nobody reads.

    Raises:
        OSError: no such source. UserError: see `open_stream`.
    """
    _attempt("copy", f"{source} to {target}", _copy, str(source), str(target))


def _copy(source, target):
    gfile.copy(source, target, overwrite=True)
    expected, copied = gfile.stat(source).length, gfile.stat(target).length
    if copied != expected:
        raise _Interrupted(f"{copied} of {expected} bytes came")


def make_folder(path):
    """Makes a folder and those above it; one that is there already is fine."""
    if is_remote(path):
        _attempt("make", path, gfile.makedirs, path)
    else:
        os.makedirs(path, exist_ok=True)


def remove(path):
    """Removes a file or a folder with all that is in it; one that is not there is fine."""
    if not is_remote(path):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        return
    with contextlib.suppress(FileNotFoundError):
        _attempt("remove", path, gfile.rmtree if is_folder(path) else gfile.remove, path)


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
