"""Checkpoints: written whole or not at all, verified when read, the newest good one taken."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil

import h5py
import numpy as np

from kbert.errors import UserError
from kbert.utils import atomic
from kbert.utils.formats import sha256_of

OPTIMIZER_FILE = "optimizer.h5"
STATE_FILE, _FORMAT = "state.json", 3
_NAME = re.compile(r"step_(\d{8,})")


class Checkpoints:
    """The checkpoints of a run: folders `step_00000100`, each with `state.json`.

    `state.json` is written last, holds the SHA-256 of the other files and of itself, and the folder
    gets its name only then: a folder with a name is whole, and a damaged one is noticed.

    Args:
        folder: made when the first checkpoint is written.
        keep: how many to keep.

    Attributes:
        last_good: folder of the checkpoint that was verified or written last, or None.
    """

    def __init__(self, folder, keep):
        self.folder = pathlib.Path(folder)
        self.last_good = None
        self._keep = keep

    def steps(self):
        """Steps of the checkpoints that are there, rising."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def path(self, step):
        """Folder of the checkpoint of a step."""
        return self.folder / f"step_{step:08d}"

    def save(self, step, state, write):
        """Writes a checkpoint and deletes those that are too old.

        Args:
            step: int. state: dict that JSON can hold.
            write: function that puts all other files into the folder it is given.

        Raises:
            UserError: it cannot be written, as when the disk is full; those before it are whole.
        """
        name = f"the checkpoint of step {step} in {self.folder}"
        before = f"{self.last_good}, which is whole" if self.last_good else "the start"
        with atomic.folder(self.path(step), name, f": it goes on from {before}") as scratch:
            write(scratch)
            files = {path.name: sha256_of(path) for path in sorted(scratch.iterdir())}
            state = {"format": _FORMAT, "step": step, **state, "files": files}
            state["checksum"] = _checksum(state)
            atomic.write_json(scratch / STATE_FILE, state, indent=1)
        self.last_good = self.path(step)
        for other in self.steps():
            if other > step:  # damaged, or the run would have gone on from it
                shutil.rmtree(self.path(other), ignore_errors=True)
        self.clear_away(step)

    def clear_away(self, step):
        """Deletes what is too old at a step, and what killed runs were writing or deleting."""
        for old in [other for other in self.steps() if other <= step][: -self._keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        for leftover in self.folder.glob(".step_*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def newest(self, report):
        """State of the newest checkpoint that is not damaged, or None if there is none at all.

        Args:
            report: called with a line for each damaged one.

        Raises:
            UserError: all of them are damaged, or one cannot be judged: it may not be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = verified_state(self.path(step))
            except DamagedCheckpoint as error:
                report(f"{error} Taking the one before.")
            else:
                self.last_good = self.path(step)
                return state
        if steps:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged. To start again from scratch, "
                f"remove that folder; to start from weights, take --init_from and another folder."
            )
        return None


class DamagedCheckpoint(UserError):
    """A checkpoint is not what was written."""


def is_checkpoint(folder):
    """Whether a folder is one that `Checkpoints` wrote."""
    return (pathlib.Path(folder) / STATE_FILE).is_file()


def verified_state(path):
    """State of the checkpoint in a folder, after reading every file of it.

    Raises:
        DamagedCheckpoint: a file is missing or not what was written.
        UserError: a file may not be read, or another version of kbert wrote it.
    """
    path = pathlib.Path(path)
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        checksum = state.pop("checksum", None)
        whole = checksum == _checksum(state)
        if state["format"] != _FORMAT and (whole or checksum is None):  # not one of its own digits
            raise UserError(
                f"checkpoint {path} has format {state['format']}; this kbert reads {_FORMAT}. Use "
                f"the kbert that wrote it, or another --output_dir."
            )
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


def restore_arrays(path, variables, optional=()):
    """Assigns the arrays of a file to Keras variables of the same names.

    Args:
        path: what `write_arrays` of `kbert.model.weights.native` wrote.
        variables: dict of name -> Keras variable.
        optional: starts of names that the file may lack; these variables stay as they are.

    Raises:
        UserError: an array is missing, or has another shape.
    """
    with h5py.File(path, "r") as file:
        for name, variable in variables.items():
            if name not in file and name.startswith(tuple(optional)):
                continue
            saved = file[name].shape if name in file else "none"
            if saved != tuple(variable.shape):
                raise UserError(
                    f"{path} does not fit this model and optimizer: {name} has the shape {saved}, "
                    f"wanted is {tuple(variable.shape)}. Use the flags it was written with."
                )
            variable.assign(np.asarray(file[name]))


class BackgroundWriter:
    """Writes files in a thread of its own, one job at a time, so that no step waits for the disk.

    A job's error is raised by the next call. As a context manager it ends with the last job done.
    """

    def __init__(self):
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._job = None

    def start(self, job):
        """Runs `job()`, after the one under way."""
        self.wait()
        self._job = self._executor.submit(job)

    def check(self):
        """Raises the error of a job that has failed; does not wait."""
        if self._job and self._job.done():
            self.wait()

    def wait(self):
        """Waits for the job under way, and raises its error."""
        job, self._job = self._job, None
        if job:
            job.result()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self._executor.shutdown(wait=True)
        if error is None:
            self.wait()


def _checksum(state):
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
