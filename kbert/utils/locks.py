"""Locks: two processes never write the same local folder.

Remote storage has no locks: the local copy of a remote folder is locked, the folder itself is not.
"""

import contextlib
import fcntl
import os
import pathlib
import socket

from kbert.errors import UserError


@contextlib.contextmanager
def folder_lock(folder):
    """Holds the lock of a run's folder; the system lets go of it however the process ends.

    Raises:
        UserError: another process holds it.
    """
    with _held(pathlib.Path(folder) / "lock", folder):
        yield


@contextlib.contextmanager
def target_lock(target):
    """Holds the lock of a folder that is about to be made: a file beside it, removed at the end.

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
                    f"it or stop it, or take another --output_dir."
                ) from None
            except OSError as error:  # a file system without locks
                raise UserError(
                    f"cannot lock {path}: {os.strerror(error.errno)}. Name a folder on a file "
                    f"system that has locks."
                ) from error
            if not _is_at(file, path):
                continue  # who held it before has removed it in the meantime
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
            return


def _is_at(file, path):
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
