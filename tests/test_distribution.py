"""Devices: what the flags mean, and that the number of replicas changes nothing."""

import itertools
import json
import pathlib
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf
from run_files import metrics_of, weights_of
from warm_python import PYTHON

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train.distribution import _check_devices, find_devices

RUNS = pathlib.Path(__file__).parent / "train_runs.py"


def config(**settings):
    return PretrainConfig(**{"input": "x", "global_batch_size": 24} | settings)


def test_one_cpu_is_one_device_without_xla():
    for distribution in ("auto", "one_device"):
        devices = find_devices(config(distribution=distribution))
        assert (devices.replicas, devices.jit, devices.kind) == (1, False, "CPU")
    assert find_devices(config(jit="on")).jit
    assert not find_devices(config(jit="off")).jit


def test_description():
    devices = find_devices(config(jit="on"))
    text = devices.describe(config(accumulation_steps=4))
    assert text == "devices: 1 CPU, 24 examples each in 4 slices of 6, XLA on"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"accumulation_steps": 5},
            r"devices times accumulation_steps; got 24 and 1 x 5. Use a batch size of 25.",
        ),
        ({"cpu_devices": 2}, r"cpu_devices=2 has no effect: .* Run kbert as a program"),
    ],
)
def test_flags_that_cannot_be(settings, message):
    tf.config.list_logical_devices()  # from here on it is too late
    with pytest.raises(UserError, match=message):
        find_devices(config(**settings))


@pytest.mark.parametrize(
    ("batch", "advice"), [(9, " of 12, or --dist.*=one_device"), (8, r"of 12\.$")]
)
def test_one_device_is_advised_if_it_helps(batch, advice):
    gpus = types.SimpleNamespace(replicas=2, local_replicas=2, kind="GPU")
    settings = config(global_batch_size=batch, accumulation_steps=3)
    with pytest.raises(UserError, match=advice):
        _check_devices(settings, gpus)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--cpu_devices=4", "--accumulation_steps=3"],
            "the batch size must be divisible by the number of devices times accumulation_steps; "
            "got 256 and 4 x 3. Use a batch size of 264.",
        ),
        (
            ["--cpu_devices=2", "--distribution=one_device"],
            "cpu_devices must be 1 with --distribution=one_device; got 2. Use "
            "--distribution=mirrored.",
        ),
        (
            ["--cpu_devices=2", "--jit=on"],
            "jit must be auto or off with cpu_devices > 1: XLA compiles for one CPU device.",
        ),
    ],
)
def test_programs_refuse_in_one_line(flags, message, tmp_path):
    command = [PYTHON, "-m", "kbert.pretrain", "--input=sample:train", *flags]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/run"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    assert not (tmp_path / "run").exists()


class Runs:
    """Trains in processes of their own, one per number of replicas."""

    def __init__(self, folder, corpus):
        self._folder = folder
        architecture = folder / "tiny.yaml"
        architecture.write_text(
            "num_hidden_layers: 1\nhidden_size: 12\nnum_attention_heads: 3\n"
            "intermediate_size: 20\nmax_position_embeddings: 24\n"
            "hidden_dropout_prob: 0.3\nattention_probs_dropout_prob: 0.3\n"
        )
        self._settings = {
            "bert_config": str(architecture),
            "input": str(corpus.folder),
            "max_seq_length": 20,
            "short_seq_prob": 0.5,  # ragged padding, unequal numbers of masks
            "global_batch_size": 16,
            "train_steps": 40,
            "warmup_steps": 4,
            "adam_epsilon": 1e-2,  # else rounding noise of zero gradients becomes an update
            "log_every_steps": 1,
        }

    def train(self, replicas, variants):
        """variants: dict of name (a tuple) -> settings; returns one of `results_of`."""
        jobs = {}
        for name, change in variants.items():
            settings = self._settings | {"cpu_devices": replicas} | change
            jobs[str(self._folder / "-".join(map(str, name)))] = settings
        done = subprocess.run([PYTHON, RUNS, json.dumps(jobs)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return {name: results_of(path) for name, path in zip(variants, jobs, strict=True)}


def results_of(run):
    """(steps, 2) MLM and NSP loss, or (steps, 1) MLM loss, and the final weights."""
    rows = metrics_of(run)
    assert len(rows) == 40
    names = [name for name in ("mlm_loss", "nsp_loss") if name in rows[0]]
    losses = np.array([[row[name] for name in names] for row in rows])
    return losses, weights_of(f"{run}/pretrain/final")


def largest_differences(first, second):
    losses = np.abs(first[0] - second[0]).max()
    weights = max(np.abs(first[1][name] - second[1][name]).max() for name in first[1])
    return losses, weights


def check_grid(runs, grid, **settings):
    """Trains `grid`, a list of (replicas, slices, optimizer), and compares with one device.

    1e-6 is rounding: float32 sums in another order. Dropout draws the same in all of them. Muon
    amplifies the rounding in the smallest singular values of the gradients.
    """
    rates = {"sgd": 0.5, "lamb": 1e-2, "muon": 1e-2, "adamw": 1e-2}
    found = {}
    for replicas in sorted({entry[0] for entry in grid}):
        variants = {
            (replicas, slices, optimizer): {
                "optimizer": optimizer,
                "learning_rate": rates[optimizer],
                "accumulation_steps": slices,
                **settings,
            }
            for count, slices, optimizer in grid
            if count == replicas
        }
        found |= runs.train(replicas, variants)
    for entry in grid:
        reference = found[1, 1, entry[2]]
        means = reference[0].sum(axis=1).reshape(4, 10).mean(axis=1)
        assert means[-1] < means[0] - 0.01  # it learns
        losses, weights = largest_differences(reference, found[entry])
        most = 5e-6 if entry[2] == "muon" else 1e-6
        assert losses < 1e-6 and weights < most, (entry, losses, weights)


def test_replicas_and_slices_make_no_difference(tmp_path, corpus):
    """40 steps on the same global batches: losses and weights."""
    grid = [(1, 1, "sgd"), (2, 2, "sgd")]
    check_grid(Runs(tmp_path, corpus), grid)


@pytest.mark.slow
def test_replicas_and_slices_make_no_difference_to_packed_rows(tmp_path, corpus):
    grid = [(1, 1, "sgd"), (2, 2, "sgd")]
    check_grid(Runs(tmp_path, corpus), grid, next_sentence=False, packing=True)


@pytest.mark.slow
def test_all_replicas_and_slices_make_no_difference(tmp_path, corpus):
    """1, 2 and 4 replicas x 1, 2 and 4 slices x every optimizer."""
    grid = list(itertools.product((1, 2, 4), (1, 2, 4), ("sgd", "lamb", "muon", "adamw")))
    check_grid(Runs(tmp_path, corpus), grid)
