"""What a run has written, and how it is stopped, for tests."""

import json
import pathlib

import h5py


def metrics_of(run):
    """The lines of `metrics.jsonl`, without the speed."""
    lines = (pathlib.Path(run) / "pretrain" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("tokens_per_second", None)
        row.pop("input_wait", None)
    return rows


def weights_of(folder):
    """dict of name -> array, of a folder with `weights.h5`."""
    found = {}

    def add(name, item):
        if hasattr(item, "shape"):
            found[name] = item[()]

    with h5py.File(pathlib.Path(folder) / "weights.h5") as file:
        file.visititems(add)
    return found


def stop_at(monkeypatch, step):
    """Asks a run to stop after a step, before its evaluation, as a signal does.

    Real signals are for processes of their own: in one that runs tests, they can end it.
    """
    from kbert.train.trainer import Trainer  # here: tests.chaos imports TensorFlow later

    take_steps = Trainer.take_steps

    def take_and_stop(self, batches, count):
        if self.step < step:
            count = min(count, step - self.step)
        take_steps(self, batches, count)
        self.stop_training |= self.step == step

    monkeypatch.setattr(Trainer, "take_steps", take_and_stop)
