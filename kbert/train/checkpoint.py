"""Checkpoints: written whole or not at all, verified when read, the newest good one taken."""

import hashlib
import json
import os
import pathlib
import re
import shutil

import tensorflow as tf

from kbert.errors import UserError

_STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")


def training_variables(model, optimizer):
    """Everything that a step changes: weights, seeds of dropout, slots of the optimizer.

    Returns:
        dict of name -> tf.Variable. Seeds are numbered: Keras' names for them depend on what else
        the process has built.
    """
    named = {f"model/{name}": weight for name, weight in model.named_weights().items()}
    known = {id(weight) for weight in named.values()}
    seeds = [variable for variable in model.variables if id(variable) not in known]
    named |= {f"seed/{i}": variable for i, variable in enumerate(seeds)}
    named |= {f"optimizer/{i}": variable for i, variable in enumerate(optimizer.variables)}
    return {name: variable.value for name, variable in named.items()}


class Checkpoints:
    """The checkpoints of a run: folders `step_00000100` with the variables and `state.json`.

    `state.json` is written last, holds the SHA-256 of the other files, and the folder gets its name
    only then: a folder with a name is whole, and a damaged one is noticed.

    Args:
        folder: made when the first checkpoint is written.
        keep: how many to keep.
    """

    def __init__(self, folder, keep):
        self.folder = pathlib.Path(folder)
        self._keep = keep

    def steps(self):
        """Steps of the checkpoints that are there, rising."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def path(self, step):
        """Folder of the checkpoint of a step."""
        return self.folder / f"step_{step:08d}"

    def save(self, step, variables, state):
        """Writes a checkpoint and deletes those that are too old.

        Args:
            step: int. variables: dict of name -> tf.Variable. state: dict that JSON can hold.
        """
        scratch = self.folder / f"partial-{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        tf.train.Checkpoint(variables=variables).write(str(scratch / "variables"))
        files = {path.name: _sha256(path) for path in sorted(scratch.iterdir())}
        text = json.dumps({**state, "step": step, "files": files}, indent=1)
        (scratch / _STATE).write_text(text + "\n", encoding="utf-8")
        for path in scratch.iterdir():
            _sync(path)
        _sync(scratch)
        target = self.path(step)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        _sync(self.folder)
        for other in self.steps():
            if other > step:  # damaged, or the run would have gone on from it
                shutil.rmtree(self.path(other))
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self.path(old))
        for partial in self.folder.glob("partial-*"):  # of runs that were killed
            shutil.rmtree(partial, ignore_errors=True)

    def newest(self, report):
        """State of the newest checkpoint that is not damaged, or None if there is none at all.

        Args:
            report: called with a line for each damaged one.

        Raises:
            UserError: all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._verified_state(step)
            except (OSError, ValueError, KeyError, TypeError) as error:
                report(f"checkpoint {self.path(step)} is damaged ({error}); taking the one before")
        if steps:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged. To start again from scratch, "
                f"remove that folder; to start from weights, take --init_from and another folder."
            )
        return None

    def _verified_state(self, step):
        path = self.path(step)
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        for name, expected in state["files"].items():
            if _sha256(path / name) != expected:
                raise ValueError(f"the checksum of {name} differs")
        return state

    def restore(self, step, variables):
        """Reads a checkpoint into variables.

        Raises:
            UserError: its variables are not these.
        """
        path = self.path(step)
        try:
            status = tf.train.Checkpoint(variables=variables).read(str(path / "variables"))
            status.assert_consumed()
        except (AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the checkpoint {path} does not fit the model or the optimizer: {reason}. Use the "
                f"flags it was written with (run.flags beside it), or another --output_dir."
            ) from error


def replace_folder(target, write):
    """Makes a folder whole or not at all: `write(path)` fills it elsewhere before it is named."""
    target = pathlib.Path(target)
    scratch, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    if old.exists() and not target.exists():  # a process was killed between the two renames
        old.rename(target)
    for left in (scratch, old):
        shutil.rmtree(left, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        write(scratch)
        for path in scratch.iterdir():
            _sync(path)
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
