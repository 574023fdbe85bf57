"""Operations on remote paths, such as gs://BUCKET/FILE, with `tf.io.gfile`.

`kbert.utils.storage` calls and describes these functions. Transient errors are retried with
exponential backoff.
"""

import io
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from kbert.errors import UserError
from kbert.utils.storage import RetryError

TRIES = 6
# The next waits are 2, 4, 8 and 16 s. A random part of each, up to half, is cut, so that workers
# spread out.
FIRST_WAIT_S = 1.0
gfile = tf.io.gfile
_CHUNK_BYTES = 1 << 20
_T = TypeVar("_T")


class _Interrupted(Exception):
    """A transfer or a listing was incomplete."""


_TRANSIENT_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.InternalError,
    _Interrupted,
)


def _attempt(what: str, path: str, function: Callable[..., _T], *args: object) -> _T:
    """Returns function(*args); retries transient errors, and converts the errors of TensorFlow."""
    for number in range(TRIES):
        if number:
            time.sleep(FIRST_WAIT_S * 2 ** (number - 1) * random.uniform(0.5, 1))
        try:
            return function(*args)
        except _TRANSIENT_ERRORS as error:
            last = error
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(2, "No such file or directory", str(path)) from error
        except tf.errors.UnimplementedError as error:
            scheme = str(path).partition("://")[0]
            raise UserError(
                f"cannot {what} {path}: this TensorFlow does not support {scheme}:// "
                f"({_reason(error)}). Use gs://, copy the files, or mount their storage as a "
                f"folder."
            ) from error
        except tf.errors.OpError as error:
            raise UserError(f"cannot {what} {path}: {_reason(error)}.") from error
    raise RetryError(
        f"cannot {what} {path}: gave up after {TRIES} attempts; the last error: {_reason(last)}."
    ) from last


def _reason(error):
    message = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(message.split()).rstrip(".")


def glob(pattern: str) -> list[str]:
    try:
        return _attempt("list", pattern, gfile.glob, pattern)
    except FileNotFoundError:
        return []


def is_folder(path: str) -> bool:
    try:  # not gfile.isdir, which returns False for every error
        return _attempt("access", path, gfile.stat, path).is_directory
    except FileNotFoundError:
        return False


def exists(path: str) -> bool:
    return _attempt("access", path, gfile.exists, path)


def list_folder(path: str) -> list[str]:
    return _attempt("list", path, _list_names, path)


def _list_names(path):
    try:
        return gfile.listdir(path)
    except tf.errors.NotFoundError as error:  # also raised if the folder cannot be read
        raise _Interrupted(f"{path} existed a moment ago") from error


def stat(path: str) -> tuple[int, int]:
    status = _attempt("access", path, gfile.stat, path)
    return status.length, status.mtime_nsec


def open_stream(path: str) -> io.BufferedReader:
    return io.BufferedReader(_RemoteFile(path), _CHUNK_BYTES)


class _RemoteFile(io.RawIOBase):
    """Reads a remote file; after an error, reopens it and resumes reading at the same offset."""

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
                raise _Interrupted(f"the file ended after {self._offset} of {self._size} bytes")
        except BaseException:
            self._file = None
            raise
        return data


def copy(source: str, target: str) -> None:
    _attempt("copy", f"{source} to {target}", _copy, str(source), str(target))


def _copy(source, target):
    gfile.copy(source, target, overwrite=True)
    expected, copied = gfile.stat(source).length, gfile.stat(target).length
    if copied != expected:
        raise _Interrupted(f"{copied} of {expected} bytes arrived")


def make_folder(path: str) -> None:
    _attempt("create", path, gfile.makedirs, path)


def remove(path: str) -> None:
    _attempt("remove", path, gfile.rmtree if is_folder(path) else gfile.remove, path)
