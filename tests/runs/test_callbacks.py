"""Callbacks that are defined here take part in runs, without a change in kbert."""

import math

import pytest
from run_files import metrics_of
from tiny_runs import assert_same_run

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train import Callback, pretrain


class Recorder(Callback):
    """Notes each moment with its step and its arguments."""

    def __init__(self):
        self.moments = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *args: self.moments.append((name, self.trainer.step, *args))

    def steps_of(self, moment):
        return [step for name, step, *_ in self.moments if name == moment]


def test_moments(settings, whole, tmp_path):
    recorder = Recorder()
    results = pretrain(PretrainConfig(**settings), tmp_path / "run", callbacks=[recorder])
    names = [name for name, *_ in recorder.moments]
    assert names[:4] == ["on_build", "on_train_begin", "on_step_end", "on_log"]
    assert names[-5:] == ["on_evaluate", "on_save", "on_train_end", "on_finish", "on_exit"]
    assert recorder.steps_of("on_build") == recorder.steps_of("on_train_begin") == [0]
    assert recorder.steps_of("on_log") == recorder.steps_of("on_step_end") == list(range(1, 13))
    assert recorder.steps_of("on_evaluate") == [6, 12]
    assert recorder.steps_of("on_save") == [5, 10, 12]
    rows = metrics_of(tmp_path / "run")
    logged = [args[0]["loss"] for name, _, *args in recorder.moments if name == "on_log"]
    assert logged == [row["loss"] for row in rows if "loss" in row]
    evaluated = [args for name, _, *args in recorder.moments if name == "on_evaluate"]
    losses = [metrics["eval_mlm_loss"] for metrics, _ in evaluated]
    assert [better for _, better in evaluated] == [True, losses[1] < losses[0]]
    assert recorder.moments[-2][2] == results
    assert_same_run(whole, tmp_path / "run")


class Stop(Callback):
    """Stops a run after a step."""

    def __init__(self, step):
        self._step = step

    def steps_left(self, step):
        return self._step - step if step < self._step else math.inf

    def on_step_end(self):
        self.trainer.stop_training |= self.trainer.step == self._step


@pytest.mark.slow
def test_a_callback_may_stop_a_run_at_a_step_of_its_own(settings, whole, tmp_path, capsys):
    pretrain(PretrainConfig(**settings), tmp_path / "run", callbacks=[Stop(4)])
    assert "stopped at step 4; the checkpoint is saved. Resume with:" in capsys.readouterr().out
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")
    rarely = dict.fromkeys(("log_every_steps", "eval_every_steps", "save_every_steps"), 12)
    pretrain(PretrainConfig(**settings | rarely), tmp_path / "long", callbacks=[Stop(7)])
    assert "stopped at step 7; the checkpoint is saved. Resume with:" in capsys.readouterr().out


class Refusal(Callback):
    ended = False

    def on_build(self):
        raise UserError(f"no {self.trainer.model.config.num_hidden_layers} layers.")

    def on_exit(self):
        self.ended = True


def test_a_callback_may_refuse_a_run_before_anything_is_written(settings, tmp_path):
    callback = Refusal()
    with pytest.raises(UserError, match=r"^no 1 layers\.$"):
        pretrain(PretrainConfig(**settings), tmp_path / "run", callbacks=[callback])
    assert callback.ended and not (tmp_path / "run/pretrain").exists()
