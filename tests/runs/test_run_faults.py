"""Gradients that are not finite, full memory and disks, two runs in one folder."""

import errno
import re
import subprocess
import time

import h5py
import numpy as np
import pytest
import tensorflow as tf
from run_files import metrics_of, weights_of
from tiny_runs import assert_same_run, command, run_program
from warm_python import PYTHON, pid_of

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train import callbacks, pretrain, trainer
from kbert.train.step import TrainStep


def spoil_a_gradient(monkeypatch, at_step):
    """Makes the gradient of one step of a run not finite."""
    gradients = TrainStep._slice_gradients

    def spoiled(self, features, mlm_count, step, slice_number):
        sums, found = gradients(self, features, mlm_count, step, slice_number)
        factor = tf.where(step + 1 == at_step, np.inf, 1.0)
        return sums, [found[0] * factor, *found[1:]]

    monkeypatch.setattr(TrainStep, "_slice_gradients", spoiled)


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    settings, whole, tmp_path, monkeypatch
):
    spoil_a_gradient(monkeypatch, at_step=8)
    folder = tmp_path / "run/pretrain/checkpoint"
    message = (
        r"the loss or the gradient is not finite at step 8\. Lower --learning_rate or raise "
        rf"--warmup_steps, or .* --nonfinite=skip; the last checkpoint is {folder}/step_00000005"
    )
    with pytest.raises(UserError, match=message):
        pretrain(PretrainConfig(**settings), tmp_path / "run")
    monkeypatch.undo()
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_gradient_that_is_not_finite_may_be_skipped(settings, tmp_path, monkeypatch, capsys):
    spoil_a_gradient(monkeypatch, at_step=8)
    settings |= {"nonfinite": "skip", "log_every_steps": 4}
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "note: the loss or the gradient is not finite at step 8: skipped" in printed
    assert printed.count(" | 1 skipped") == 1
    rows = [row for row in metrics_of(tmp_path / "run") if "loss" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 0]
    with h5py.File(tmp_path / "run/pretrain/checkpoint/step_00000012/optimizer.h5") as file:
        assert file["iterations"][()] == 11
    for value in weights_of(tmp_path / "run/pretrain/final").values():
        assert np.isfinite(value).all()


@pytest.mark.slow
def test_a_run_without_a_finite_step_stops_even_if_told_to_skip(
    settings, finished, tmp_path, monkeypatch
):
    final = finished / "pretrain/final"
    with h5py.File(final / "weights.h5", "a") as file:
        file["mlm/output_bias"][3] = np.inf
    more = settings | {"init_from": str(final), "bert_config": None}
    with pytest.raises(UserError, match=r"not finite at step 1\. .*; there is no checkpoint yet\."):
        pretrain(PretrainConfig(**more), tmp_path / "more")
    assert not (tmp_path / "more/pretrain/checkpoint").exists()
    monkeypatch.setattr(trainer, "MAX_NONFINITE_STEPS", 3)
    with pytest.raises(UserError, match=r"at step 3\. .*as 3 consecutive steps were not finite; "):
        pretrain(PretrainConfig(**more, nonfinite="skip"), tmp_path / "more")
    assert [row["loss"] for row in metrics_of(tmp_path / "more")] == [None, None]


def test_a_batch_that_does_not_fit_into_memory_is_one_line_with_the_flag(
    settings, tmp_path, monkeypatch
):
    class TooLarge(TrainStep):
        def take(self, batches, step, count):
            if step < 7:
                return super().take(batches, step, count)
            raise tf.errors.ResourceExhaustedError(
                None,
                None,
                "Graph execution error:\n\nOOM when allocating tensor with shape[6,20] and type "
                "float on /job:localhost/replica:0 by allocator cpu\n [Op:__inference_take_9]",
            )

    monkeypatch.setattr(trainer, "TrainStep", TooLarge)
    with pytest.raises(UserError) as caught:
        pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert str(caught.value) == (
        f"out of memory after step 7 (OOM when allocating tensor with shape[6,20] and type float). "
        f"Use --accumulation_steps=2, which computes the same in smaller slices; --remat also "
        f"saves memory; the last checkpoint is {tmp_path}/run/pretrain/checkpoint/step_00000005."
    )


def test_a_disk_that_is_full_while_saving(settings, whole, tmp_path):
    """The system refuses to let files grow once the first checkpoint is there."""
    script = tmp_path / "train.py"
    script.write_text(
        "import resource\n"
        "from kbert.utils import program\n"
        "from kbert.settings import PretrainConfig\n"
        "from kbert.train import callbacks, pretrain\n"
        "write = callbacks.write_arrays\n"
        "def write_arrays(path, arrays):\n"
        "    if (path.parent.parent / 'step_00000005').exists():\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "    write(path, arrays)\n"
        "callbacks.write_arrays = write_arrays\n"
        f"program.run(lambda: pretrain(PretrainConfig(**{settings!r}), '{tmp_path}/run'))\n"
    )
    done = subprocess.run([PYTHON, script], capture_output=True, text=True)
    folder = tmp_path / "run/pretrain/checkpoint"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (  # importing TensorFlow has something to say before
        f"error: cannot write the checkpoint of step 10 in {folder}: File too large. Fix this and "
        f"run the same command again: it resumes from {folder}/step_00000005, which is complete."
    )
    assert [path.name for path in folder.iterdir()] == ["step_00000005"]
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_disk_that_is_full_for_the_log(settings, tmp_path, monkeypatch):
    def full(self, metrics):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(callbacks.MetricsFile, "on_log", full)
    message = rf"cannot write {tmp_path}/run: No space left on device\. Fix this and run the same"
    with pytest.raises(UserError, match=message):
        pretrain(PretrainConfig(**settings), tmp_path / "run")


def test_a_second_run_in_the_folder_is_refused(settings, tmp_path):
    settings |= {"train_steps": 10**6, "log_every_steps": 1}
    first = subprocess.Popen(command(settings, tmp_path / "run"), stdout=subprocess.PIPE, text=True)
    try:
        while "step 1/" not in first.stdout.readline():
            assert first.poll() is None
        second = run_program(settings, tmp_path / "run")
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert re.fullmatch(
        rf"error: {tmp_path}/run is in use by process {pid_of(first)} on \S+\. Wait for it, stop "
        rf"it, or choose another --output_dir\.\n",
        second.stderr,
    )


def test_the_run_goes_on_while_a_checkpoint_is_written(settings, whole, tmp_path, monkeypatch):
    """The first one is not finished before two more steps have been taken."""
    save, steps = trainer.Checkpoints.save, []

    def slow_save(self, step, state, write):
        deadline = time.monotonic() + 60
        while step == 5 and runs[0].step < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        steps.append((step, runs[0].step))
        save(self, step, state, write)

    runs, begin = [], trainer.Trainer.fit

    def run(self):
        runs.append(self)
        return begin(self)

    monkeypatch.setattr(trainer.Checkpoints, "save", slow_save)
    monkeypatch.setattr(trainer.Trainer, "fit", run)
    pretrain(PretrainConfig(**settings | {"eval_every_steps": 12}), tmp_path / "run")
    assert steps[0][0] == 5 and steps[0][1] >= 7
    after, expected = (weights_of(run / "pretrain/final") for run in (tmp_path / "run", whole))
    for name in expected:
        np.testing.assert_array_equal(after[name], expected[name])
