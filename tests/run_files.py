"""What a run has written, and how it is stopped, for tests."""

import json
import pathlib
import signal

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


def signal_at(monkeypatch, step, number):
    """Sends this process a signal after a step of a run that is logged, before its evaluation."""
    from kbert.train import loop  # here: tests.chaos reads runs before it imports TensorFlow

    log = loop.Run._log

    def log_and_signal(self):
        if self.step == step:
            signal.raise_signal(number)
        return log(self)

    monkeypatch.setattr(loop.Run, "_log", log_and_signal)
