"""Atomic writes: files and folders are written beside their target, then renamed."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from kbert.errors import UserError


@contextlib.contextmanager
def file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to; the file replaces `path` if the block succeeds."""
    path = pathlib.Path(path)
    scratch = path.with_name(f".{path.name}.partial")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes to a file atomically."""
    with file(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text to a file as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(
    path: str | os.PathLike[str],
    values: object,
    indent: int | None = 2,
    ensure_ascii: bool = True,
) -> None:
    """Writes values as JSON, atomically; `indent` and `ensure_ascii` are as for `json.dumps`."""
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=ensure_ascii) + "\n")


@contextlib.contextmanager
def parent_folders(path: str | os.PathLike[str]) -> Iterator[None]:
    """Creates the missing parent folders of a path; after the block, removes them if empty."""
    parents = pathlib.Path(path).absolute().parents
    missing = [parent for parent in parents if not parent.exists()]
    parents[0].mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for parent in missing:
                parent.rmdir()


@contextlib.contextmanager
def folder(
    target: str | os.PathLike[str], name: str | None = None, resumes: str = ""
) -> Iterator[pathlib.Path]:
    """Yields an empty folder to write to; it replaces `target` if the block succeeds.

    All files are synced to the disk before the folder is renamed. The previous folder is deleted
    last. Only one process at a time may replace a folder: see `kbert.utils.locks.target_lock`.

    Args:
        target: path of the folder.
        name: name of the folder in messages; None: its path.
        resumes: end of the error message, such as ": it resumes from the last checkpoint".

    Raises:
        UserError: the folder cannot be written, for example because the disk is full; the previous
            folder is unchanged.
        OSError: the block raised it for a file outside `target`.
    """
    target = pathlib.Path(target).absolute()
    try:
        with _replace_folder(target) as scratch:
            yield scratch
    except OSError as error:
        if error.filename is not None and not _concerns(error.filename, target):
            raise
        raise UserError(
            f"cannot write {name or target}: {reason(error)}. Fix this and run the same command "
            f"again{resumes}."
        ) from error


def _concerns(path, target):
    """Returns whether a path is `target` or a temporary folder, is inside one, or is a parent."""
    path = pathlib.Path(os.path.abspath(os.fsdecode(path)))
    names = {target, *_scratch_and_old(target)}
    return path in target.parents or not names.isdisjoint([path, *path.parents])


@contextlib.contextmanager
def _replace_folder(target):
    recover_folder(target)
    scratch, old = _scratch_and_old(target)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for path in (*scratch.rglob("*"), scratch):
            _sync(path)
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: str | os.PathLike[str]) -> None:
    """Cleans up after a process that was killed while replacing a folder.

    Restores the previous folder if the new one is not in place, and removes the temporary folders.
    """
    target = pathlib.Path(target)
    scratch, old = _scratch_and_old(target)
    if old.exists() and not target.exists():  # killed between the two renames
        old.rename(target)
    for leftover in (scratch, old):
        shutil.rmtree(leftover, ignore_errors=True)


def reason(error: OSError) -> str:
    """Returns the cause of an OSError as text, without the file name."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def _scratch_and_old(target):
    return (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
