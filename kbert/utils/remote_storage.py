"""Remote paths, such as gs://BUCKET/FILE, by `tf.io.gfile`; `kbert.utils.storage` uses them.

What fails in a way that may pass is tried again, with waits that double.
"""

import io
import os
import random
import time

import tensorflow as tf

from kbert.errors import UserError
from kbert.utils.storage import GaveUp

TRIES = 6
FIRST_WAIT_S = 1.0  # then 2, 4, 8, 16 s, each up to a half shorter, so that workers spread
gfile = tf.io.gfile
_CHUNK_BYTES = 1 << 20


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
    """Paths that match a pattern, in any order."""
    try:
        return _attempt("list", pattern, gfile.glob, pattern)
    except FileNotFoundError:
        return []


def is_folder(path):
    """Whether a path is a folder."""
    try:  # gfile.isdir takes every error for a no
        return _attempt("look at", path, gfile.stat, path).is_directory
    except FileNotFoundError:
        return False


def exists(path):
    """Whether there is a file or a folder."""
    return _attempt("look at", path, gfile.exists, path)


def list_folder(path):
    """Names in a folder, which end in / or not."""
    return _attempt("list", path, _names, path)


def _names(path):
    try:
        return gfile.listdir(path)
    except tf.errors.NotFoundError as error:  # so, too, if the folder cannot be looked at
        raise _Interrupted(f"{path} was there a moment ago") from error


def stat(path):
    """Size in bytes and time of change in nanoseconds."""
    status = _attempt("look at", path, gfile.stat, path)
    return status.length, status.mtime_nsec


def open_stream(path):
    """A file opened for reading bytes, buffered; can be sought."""
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
    """Copies a file; one of the paths may be local."""
    _attempt("copy", f"{source} to {target}", _copy, str(source), str(target))


def _copy(source, target):
    gfile.copy(source, target, overwrite=True)
    expected, copied = gfile.stat(source).length, gfile.stat(target).length
    if copied != expected:
        raise _Interrupted(f"{copied} of {expected} bytes came")


def make_folder(path):
    """Makes a folder and those above it."""
    _attempt("make", path, gfile.makedirs, path)


def remove(path):
    """Removes a file or a folder with all that is in it."""
    _attempt("remove", path, gfile.rmtree if is_folder(path) else gfile.remove, path)
