"""Helpers for tests that read the files of a run or stop it."""

import json
import pathlib

import h5py


def metrics_of(run):
    """Returns the rows of `metrics.jsonl`, without throughput."""
    lines = (pathlib.Path(run) / "pretrain" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("tokens_per_second", None)
        row.pop("input_wait", None)
    return rows


def weights_of(folder):
    """Returns a dict of name -> array from a folder with `weights.h5`."""
    found = {}

    def add(name, item):
        if hasattr(item, "shape"):
            found[name] = item[()]

    with h5py.File(pathlib.Path(folder) / "weights.h5") as file:
        file.visititems(add)
    return found


def stop_at(monkeypatch, step):
    """Stops a run after a step, before its evaluation, as a signal would.

    Tests send real signals only to separate processes, as a signal could end the test process.
    """
    from kbert.train.trainer import Trainer  # local, since tests.chaos delays TensorFlow's import

    take_steps = Trainer.take_steps

    def take_and_stop(self, batches, count):
        if self.step < step:
            count = min(count, step - self.step)
        take_steps(self, batches, count)
        self.stop_training |= self.step == step

    monkeypatch.setattr(Trainer, "take_steps", take_and_stop)
