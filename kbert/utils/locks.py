"""Locks that keep two processes from writing to the same local folder.

Remote storage has no locks: only the local copy of a remote folder is locked.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from kbert.errors import UserError
from kbert.utils import atomic


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the lock of a run's folder: a file in it, which is removed at the end.

    The operating system releases the lock if the process dies. Missing folders are created, and
    removed if they are still empty at the end, for example because the run failed at its start.
    """
    with _hold_lock(pathlib.Path(folder) / "lock", folder):
        yield


@contextlib.contextmanager
def target_lock(target: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the lock of a folder that the block creates: a file beside it; see `folder_lock`."""
    path = pathlib.Path(target).absolute()
    with _hold_lock(path.with_name(f".{path.name}.lock"), target):
        yield


@contextlib.contextmanager
def _hold_lock(path, folder):
    with atomic.parent_folders(path), _open_locked(path, folder) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_locked(path, folder):
    """Opens and locks a file; tries again if the file was removed before it was locked."""
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{folder} is in use by {holder}. Wait for it, stop it, or choose another "
                f"--output_dir."
            ) from None
        except OSError as error:  # the file system does not support locks
            file.close()
            path.unlink()
            raise UserError(
                f"cannot lock {path}: {os.strerror(error.errno)}. Choose a folder on a file system "
                f"that supports locks."
            ) from error
        if _is_same_file(file, path):
            return file
        file.close()  # removed by the previous holder of the lock


def _is_same_file(file, path):
    """Returns whether a path still refers to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
