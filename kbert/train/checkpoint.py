"""Checkpoints: written atomically, and verified when they are read."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np

from kbert.errors import UserError
from kbert.utils import atomic
from kbert.utils.formats import check_format, sha256_of, with_format

if TYPE_CHECKING:
    import keras

OPTIMIZER_FILE = "optimizer.h5"
STATE_FILE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")


class Checkpoints:
    """The checkpoints of a run: folders such as `step_00000100`, each with `state.json`.

    `state.json` is written last, with checksums of the other files and of its own contents. Then
    the folder is renamed to its final name, so a folder with such a name is complete. Later damage
    is detected when the checkpoint is read.

    Args:
        folder: folder of the checkpoints, created when the first one is written.
        keep: number of checkpoints to keep.

    Attributes:
        last_good: folder of the last checkpoint that was verified or written, or None.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int) -> None:
        self.folder: pathlib.Path = pathlib.Path(folder)
        self.last_good: pathlib.Path | None = None
        self._keep = keep

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, ascending."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def path(self, step: int) -> pathlib.Path:
        """Returns the folder of a step's checkpoint, whether or not it exists."""
        return self.folder / f"step_{step:08d}"

    def save(
        self, step: int, state: Mapping[str, Any], write: Callable[[pathlib.Path], None]
    ) -> None:
        """Writes a checkpoint; deletes later ones and, if there are more than `keep`, the oldest.

        `state` is JSON-serializable; `write` writes all files except `state.json` into a folder.
        Raises UserError if the checkpoint cannot be written, for example because the disk is full.
        Earlier checkpoints stay valid.
        """
        name = f"the checkpoint of step {step} in {self.folder}"
        before = f"{self.last_good}, which is complete" if self.last_good else "the start"
        with atomic.folder(self.path(step), name, f": it resumes from {before}") as scratch:
            write(scratch)
            files = {path.name: sha256_of(path) for path in sorted(scratch.iterdir())}
            state = with_format(STATE_FILE, {"step": step, **state, "files": files})
            state["checksum"] = _checksum(state)
            atomic.write_json(scratch / STATE_FILE, state, indent=1)
        self.last_good = self.path(step)
        for other in self.steps():
            if other > step:  # a damaged checkpoint from which the run did not resume
                shutil.rmtree(self.path(other), ignore_errors=True)
        self.delete_old(step)

    def delete_old(self, step: int) -> None:
        """Deletes unfinished checkpoints, and all but the last `keep` checkpoints up to `step`."""
        for old in [other for other in self.steps() if other <= step][: -self._keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        for leftover in self.folder.glob(".step_*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def newest(self, report: Callable[[str], None]) -> dict[str, Any] | None:
        """Returns the state of the newest valid checkpoint, or None if there are no checkpoints.

        Reports each damaged checkpoint.

        Raises:
            UserError: all checkpoints are damaged; or the newest undamaged one cannot be read,
                because of its file permissions or because another version of kbert wrote it.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = verified_state(self.path(step))
            except DamagedCheckpoint as error:
                report(f"{error} Using the previous one.")
            else:
                self.last_good = self.path(step)
                return state
        if steps:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged. To start from scratch, remove "
                f"that folder; to start from other weights, use --init_from and another "
                f"--output_dir."
            )
        return None


class DamagedCheckpoint(UserError):
    """Raised if a file of a checkpoint is missing or has changed since it was written."""


def is_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a folder is a checkpoint written by `Checkpoints`."""
    return (pathlib.Path(folder) / STATE_FILE).is_file()


def verified_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads and verifies every file of a checkpoint; returns its state.

    Raises:
        DamagedCheckpoint: a file is missing or has changed since it was written.
        UserError: the file permissions do not allow reading a file, or another version of kbert
            wrote the checkpoint.
    """
    path = pathlib.Path(path)
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        checksum = state.pop("checksum", None)
        whole = checksum == _checksum(state)
        # If the checksum is wrong, the format number may be the damaged part.
        if whole or checksum is None:
            check_format(path / STATE_FILE, state["format"])
        if not whole:
            raise ValueError(f"the checksum of {STATE_FILE} differs")
        for name, expected in state["files"].items():
            if sha256_of(path / name) != expected:
                raise ValueError(f"the checksum of {name} differs")
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read the checkpoint {path}: {atomic.reason(error)}.") from error
    except OSError as error:
        raise DamagedCheckpoint(
            f"checkpoint {path} is damaged ({atomic.reason(error)})."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({error}).") from error
    return state


def restore_arrays(
    path: str | os.PathLike[str],
    variables: "Mapping[str, keras.Variable]",
    optional: Iterable[str] = (),
) -> None:
    """Assigns the arrays that `write_arrays` wrote to the Keras variables of the same names.

    Variables whose names start with a prefix in `optional` keep their values if the file lacks
    them. Raises UserError if another array is missing, or has a different shape.
    """
    with h5py.File(path, "r") as file:
        for name, variable in variables.items():
            if name not in file and name.startswith(tuple(optional)):
                continue
            saved = file[name].shape if name in file else "none"
            if saved != tuple(variable.shape):
                raise UserError(
                    f"{path} does not fit this model and optimizer: {name} has shape {saved}, "
                    f"expected {tuple(variable.shape)}. Use the flags that it was written with."
                )
            variable.assign(np.asarray(file[name]))


class BackgroundWriter:
    """Writes files in a background thread, one job at a time, while training continues.

    If a job fails, the next call of a method raises its error. As a context manager, it waits for
    the last job on exit.
    """

    def __init__(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._job = None

    def start(self, job: Callable[[], object]) -> None:
        """Waits for the current job as `wait` does, then starts `job()` in the background."""
        self.wait()
        self._job = self._executor.submit(job)

    def check(self) -> None:
        """Raises the error of the current job if the job has failed; does not wait."""
        if self._job and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the current job, and raises its error if it fails."""
        job, self._job = self._job, None
        if job:
            job.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._executor.shutdown(wait=True)
        if kind is None:
            self.wait()


def _checksum(state):
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
