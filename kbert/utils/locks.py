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


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the lock of a run's folder; the operating system releases it if the process dies.

    Raises:
        UserError: another process holds it.
    """
    with _held(pathlib.Path(folder) / "lock", folder):
        yield


@contextlib.contextmanager
def target_lock(target: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the lock of a folder to be created: a file beside it, which is removed at the end.

    Raises:
        UserError: another process holds it.
    """
    path = pathlib.Path(target).absolute()
    path = path.with_name(f".{path.name}.lock")
    with _held(path, target):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path, folder):
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{folder} is in use by {file.read().strip() or 'another process'}. Wait for "
                    f"it, stop it, or choose another --output_dir."
                ) from None
            except OSError as error:  # the file system has no locks
                raise UserError(
                    f"cannot lock {path}: {os.strerror(error.errno)}. Choose a folder on a file "
                    f"system that supports locks."
                ) from error
            if not _is_at(file, path):
                continue  # the previous holder has removed it in the meantime
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
            return


def _is_at(file, path):
    """Whether a path still refers to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
