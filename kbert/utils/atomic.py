"""Files and folders that exist whole or not at all: written beside their place, then renamed."""

import contextlib
import json
import os
import pathlib
import shutil

from kbert.errors import UserError


@contextlib.contextmanager
def file(path):
    """A path to write a file to, which becomes `path` when the block ends without an error."""
    path = pathlib.Path(path)
    scratch = path.with_name(f".{path.name}.partial")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_bytes(path, data):
    """Writes a file of bytes, whole or not at all."""
    with file(path) as scratch:
        scratch.write_bytes(data)


def write_text(path, text):
    """Writes a file of UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path, values, indent=2, ensure_ascii=True):
    """Writes values as JSON, whole or not at all; the arguments are those of `json.dumps`."""
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=ensure_ascii) + "\n")


@contextlib.contextmanager
def folder(target, name=None, resumes=""):
    """An empty folder to write in, which replaces `target` when the block ends without an error.

    Everything is on the disk before the folder gets its name, and the one before is deleted last.
    Two processes must not do this at once: see `kbert.utils.locks.target_lock`.

    Args:
        target: path. name: of the folder in messages; None for its path.
        resumes: end of the message, such as ": it goes on from the start".

    Raises:
        UserError: it cannot be written, as when the disk is full; the one before it is whole.
        OSError: of the block, about a file in another place.
    """
    target = pathlib.Path(target).absolute()
    try:
        with _replacement(target) as scratch:
            yield scratch
    except OSError as error:
        if error.filename is not None and not _is_of(error.filename, target):
            raise
        raise UserError(
            f"cannot write {name or target}: {reason(error)}. Mend that and run the same command "
            f"again{resumes}."
        ) from error


def _is_of(path, target):
    """Whether a path is one that is written for a folder, or a folder that should hold it."""
    path = pathlib.Path(os.path.abspath(os.fsdecode(path)))
    names = {target, *_scratch_and_old(target)}
    return path in target.parents or not names.isdisjoint([path, *path.parents])


@contextlib.contextmanager
def _replacement(target):
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


def recover_folder(target):
    """Repairs what a process left that was killed while it replaced a folder."""
    target = pathlib.Path(target)
    scratch, old = _scratch_and_old(target)
    if old.exists() and not target.exists():  # killed between the two renames
        old.rename(target)
    for leftover in (scratch, old):
        shutil.rmtree(leftover, ignore_errors=True)


def reason(error):
    """The reason of an OSError, in words."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def _scratch_and_old(target):
    return (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
