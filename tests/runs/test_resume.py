"""Runs that were stopped, killed or damaged go on to the last bit; what may change on the way."""

import re
import shutil
import signal
import subprocess

import h5py
import numpy as np
import pytest
from killed_runs import train_and_kill
from run_files import metrics_of, stop_at, weights_of
from tiny_runs import ARCHITECTURE, assert_same_run, command, run_program
from warm_python import PYTHON

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train import pretrain, step, trainer
from kbert.train.pretraining import Pretraining

SLOW_CHANGES = (
    {"next_sentence": False, "packing": True},
    {"precision": "mixed_bfloat16", "accumulation_steps": 3},
    {"precision": "mixed_float16", "optimizer": "lamb"},
    {"optimizer": "muon", "mask_rate": 0.4},
    {"cpu_devices": 2, "accumulation_steps": 3, "precision": "mixed_float16", "remat": True},
)


@pytest.mark.parametrize(
    "change",
    [
        {},
        *(pytest.param(change, marks=pytest.mark.slow) for change in SLOW_CHANGES),
    ],
    ids=lambda change: "-".join(map(str, change.values())) or "plain",
)
def test_killed_runs_go_on_to_the_bit(settings, whole, tmp_path, change):
    """12 steps at once = 8, `kill -9`, the rest: every loss and every weight, dropout on."""
    if change:
        whole = tmp_path / "whole"
        assert run_program(settings | change, whole).returncode == 0
    settings |= change
    train_and_kill(settings, tmp_path / "killed", step=9)
    reached = [row["step"] for row in metrics_of(tmp_path / "killed") if "loss" in row]
    assert reached == list(range(1, 9))
    again = run_program(settings, tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert "starting from step" in again.stdout
    assert_same_run(whole, tmp_path / "killed")


@pytest.mark.slow
def test_sigterm_saves_and_tells_how_to_go_on(settings, tmp_path):
    whole = pretrain(PretrainConfig(**settings | {"train_steps": 200}), tmp_path / "whole")
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(settings | {"train_steps": 200}, run), stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 9/"):
            process.terminate()
            break
    rest = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM
    assert f"python -m kbert.pretrain --flagfile={run}/pretrain/run.flags" in rest
    resumed = subprocess.run(
        [PYTHON, "-m", "kbert.pretrain", f"--flagfile={run}/pretrain/run.flags"],
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "whole", run)
    assert whole["loss"] == metrics_of(run)[-2]["loss"]


def test_a_stop_by_a_signal_is_no_success(settings, tmp_path, monkeypatch):
    take_steps = trainer.Trainer.take_steps

    def take_and_stop(self, batches, count):
        take_steps(self, batches, count)
        self.stop_training, self.stop_signal = True, signal.SIGINT

    monkeypatch.setattr(trainer.Trainer, "take_steps", take_and_stop)
    with pytest.raises(SystemExit) as ended:
        pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert ended.value.code == 130
    assert (tmp_path / "run/pretrain/checkpoint/step_00000001").exists()
    settings |= {"train_steps": 1, "warmup_steps": 0}  # the signal comes with the last step
    assert pretrain(PretrainConfig(**settings), tmp_path / "complete")["loss"] > 0


def test_a_stop_during_an_evaluation_is_saved(settings, tmp_path, monkeypatch, capsys):
    evaluate = trainer.Trainer.evaluate

    def evaluate_and_interrupt(self):
        self.stop_training = True
        return evaluate(self)

    monkeypatch.setattr(trainer.Trainer, "evaluate", evaluate_and_interrupt)
    pretrain(PretrainConfig(**settings | {"eval_every_steps": 3}), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "stopped at step 3; the checkpoint is saved. Resume with:" in printed
    assert (tmp_path / "run/pretrain/checkpoint/step_00000003").exists()


@pytest.mark.slow
def test_a_stop_before_an_evaluation_does_not_wait_for_it(settings, whole, tmp_path, monkeypatch):
    """It is made up for when the run goes on."""
    stop_at(monkeypatch, 6)
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    monkeypatch.undo()
    monkeypatch.setattr(trainer.Trainer, "take_steps", lambda self, batches, count: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # it has made up for it, and dies before it saves
        pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert "eval_mlm_loss" in metrics_of(tmp_path / "run")[-1]
    monkeypatch.undo()
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_window_of_the_log_survives_a_stop(settings, tmp_path):
    """Logged every 8 steps, stopped at 5: the first line still averages steps 1 to 8."""
    settings |= {"log_every_steps": 8, "train_steps": 16}
    pretrain(PretrainConfig(**settings), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    folder = tmp_path / "cut/pretrain/checkpoint"
    for name in ("step_00000015", "step_00000016"):
        (folder / name).rename(tmp_path / name)
    (tmp_path / "step_00000015").rename(folder / "step_00000015")
    pretrain(PretrainConfig(**settings), tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_other_held_out_text_makes_the_best_loss_start_anew(settings, finished, capsys):
    settings |= {"train_steps": 14, "eval_examples": 40}
    pretrain(PretrainConfig(**settings), finished)
    printed = capsys.readouterr().out
    assert "note: the evaluation data has changed; resetting the best checkpoint" in printed
    assert "best so far" in printed


def test_a_damaged_checkpoint_is_passed_over(settings, finished, capsys):
    before = metrics_of(finished)
    newest = finished / "pretrain/checkpoint/step_00000012"
    data = bytearray((newest / "optimizer.h5").read_bytes())
    data[-100] ^= 1
    (newest / "optimizer.h5").write_bytes(data)
    pretrain(PretrainConfig(**settings), finished)
    assert "step_00000012 is damaged" in capsys.readouterr().out
    assert metrics_of(finished) == before


def test_a_complete_run_is_left_as_it_is(settings, finished, capsys):
    before = weights_of(finished / "pretrain/final")
    half_deleted = finished / "pretrain/checkpoint/step_00000001"
    half_deleted.mkdir()  # when the run was killed
    pretrain(PretrainConfig(**settings), finished)
    assert not half_deleted.exists()
    assert "this run is complete: step 12 of 12" in capsys.readouterr().out
    after = weights_of(finished / "pretrain/final")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_flags_that_would_make_it_another_run_are_refused(settings, finished):
    path = finished / "pretrain/checkpoint/step_00000012"
    changes = {"global_batch_size": 8, "seed": 1, "max_seq_length": 16, "mask_rate": 0.2}
    changes |= {"whole_word_mask": True, "short_seq_prob": 0.2, "optimizer": "lamb"}
    changes |= {"max_predictions_per_seq": 2, "bias_correction": True, "next_sentence": False}
    changes |= {"packing": True, "dropout": 0.2}
    for name, value in changes.items():
        before = getattr(PretrainConfig(**settings), name)
        message = (
            f"{name} is {value} now, but {path} was written with {before}. Resume with the old "
            f"value, or start a new run: --init_from={path} --output_dir=ANOTHER."
        )
        others = {"train_steps": 14} | ({"next_sentence": False} if name == "packing" else {})
        with pytest.raises(UserError, match=re.escape(message)):
            pretrain(PretrainConfig(**settings | others | {name: value}), finished)
    assert set(changes) == set(Pretraining.fixed)


def test_a_folder_of_another_kind_of_checkpoint_is_refused(settings, tmp_path):
    """As an older or a newer kbert, or another program, may have left."""
    path = tmp_path / "run/pretrain/checkpoint/step_00000012"
    path.mkdir(parents=True)
    (path / "state.json").write_text('{"format": 1}')
    with pytest.raises(
        UserError, match=r"state.json has the format 1; this version of kbert reads 3. Use"
    ):
        pretrain(PretrainConfig(**settings), tmp_path / "run")


def test_changed_flags_are_reported_on_resume(settings, finished, capsys):
    pretrain(PretrainConfig(**settings | {"train_steps": 14}), finished)
    assert (
        "note: --train_steps is now 14; the checkpoint was written with 12"
        in capsys.readouterr().out
    )


def test_other_flags_do_not_change_a_complete_run(settings, finished, capsys):
    path = finished / "pretrain/run.flags"
    before = path.read_bytes()
    pretrain(PretrainConfig(**settings | {"learning_rate": 0.5}), finished)
    note = "note: --learning_rate has no effect: the run is complete and used 0.01\n"
    assert note in capsys.readouterr().out
    assert path.read_bytes() == before and b"--learning_rate=0.01\n" in before


def test_flags_of_the_start_have_no_effect_on_resume(settings, finished, capsys):
    vocab = finished / "pretrain/final/vocab.txt"
    changes = {"train_steps": 13, "init_from": "gone", "vocab_size": 50, "vocab_file": str(vocab)}
    pretrain(PretrainConfig(**settings | changes), finished)
    printed = capsys.readouterr().out
    for name in ("init_from", "vocab_size", "vocab_file"):
        note = f"note: --{name} has no effect: the run resumes from its own checkpoint\n"
        assert note in printed and f"--{name} is" not in printed
    pretrain(PretrainConfig(**settings | {"train_steps": 13}), finished)
    assert "--init_from" not in capsys.readouterr().out  # left out, it asks for nothing


def test_another_vocabulary_is_refused_on_resume(settings, finished, tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text((finished / "data/vocab.txt").read_text() + "extra\n")
    message = f"--vocab_file={vocab} differs from the checkpoint's vocabulary. Remove the flag"
    with pytest.raises(UserError, match=re.escape(message)):
        pretrain(PretrainConfig(**settings | {"vocab_file": str(vocab)}), finished)


def test_a_contradicting_architecture_is_refused_on_resume(settings, finished, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(ARCHITECTURE.replace("hidden_size: 16", "hidden_size: 8"))
    with pytest.raises(UserError, match=r"hidden_size 8, but the checkpoint has 16"):
        pretrain(PretrainConfig(**settings | {"bert_config": str(other)}), finished)


def test_the_architecture_comes_from_the_checkpoint(settings, finished):
    pretrain(PretrainConfig(**settings | {"bert_config": None, "train_steps": 13}), finished)
    config = BertConfig.from_file(finished / "pretrain/final/config.json")
    assert config.hidden_size == 16


@pytest.mark.slow
def test_continued_pretraining_starts_from_the_weights(settings, whole, tmp_path, capsys):
    final = whole / "pretrain/final"
    more = settings | {"init_from": str(final), "bert_config": None, "learning_rate": 1e-9}
    pretrain(PretrainConfig(**more | {"weight_decay": 0.0}), tmp_path / "more")
    assert f"starting from the weights of {final}" in capsys.readouterr().out
    before, after = weights_of(final), weights_of(tmp_path / "more/pretrain/final")
    for name in before:
        np.testing.assert_allclose(before[name], after[name], atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_continued_pretraining_takes_the_optimizer_of_a_checkpoint(
    settings, finished, tmp_path, capsys
):
    checkpoint = finished / "pretrain/checkpoint/step_00000010"
    final = finished / "pretrain/final"
    more = settings | {"bert_config": None, "train_steps": 3}
    pretrain(PretrainConfig(**more, init_from=str(checkpoint)), tmp_path / "more")
    printed = capsys.readouterr().out
    assert f"starting from the weights and the optimizer of {checkpoint}" in printed
    with h5py.File(tmp_path / "more/pretrain/checkpoint/step_00000003/optimizer.h5") as file:
        assert file["iterations"][()] == 13
    pretrain(PretrainConfig(**more, init_from=str(final)), tmp_path / "fresh")
    with h5py.File(tmp_path / "fresh/pretrain/checkpoint/step_00000003/optimizer.h5") as file:
        assert file["iterations"][()] == 3
    capsys.readouterr()
    lamb = PretrainConfig(**more | {"optimizer": "lamb"}, init_from=str(checkpoint))
    pretrain(lamb, tmp_path / "lamb")
    printed = capsys.readouterr().out
    assert f"weights of {checkpoint}, with a fresh optimizer (it was trained with adamw " in printed
    data = bytearray((checkpoint / "weights.h5").read_bytes())
    data[-10] ^= 1
    (checkpoint / "weights.h5").write_bytes(data)
    with pytest.raises(UserError, match=r"step_00000010 is damaged \(the checksum of weights.h5"):
        pretrain(PretrainConfig(**more, init_from=str(checkpoint)), tmp_path / "damaged")


@pytest.mark.slow
def test_the_state_of_loss_scaling_survives_a_restart(settings, tmp_path, monkeypatch):
    """The scale grows every 4 steps: a run that goes on from step 5 has to know where it stood."""
    monkeypatch.setattr(step, "GROWTH_STEPS", 4)
    monkeypatch.setattr(step, "INITIAL_SCALE", 2.0**10)  # far from any overflow
    settings |= {"precision": "mixed_float16"}
    pretrain(PretrainConfig(**settings | {"keep_checkpoints": 3}), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    folder = tmp_path / "cut/pretrain/checkpoint"
    for number in (10, 12):
        shutil.rmtree(folder / f"step_{number:08d}")
    pretrain(PretrainConfig(**settings), tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    scales = [row["loss_scale"] for row in metrics_of(tmp_path / "cut") if "loss" in row]
    assert scales == [2.0 ** (10 + number // 4) for number in range(1, 13)]


@pytest.mark.slow
def test_a_run_may_change_its_precision(settings, finished, capsys):
    settings |= {"train_steps": 14, "precision": "mixed_float16"}
    pretrain(PretrainConfig(**settings), finished)
    assert "note: --precision is now mixed_float16;" in capsys.readouterr().out
    row = [row for row in metrics_of(finished) if "loss" in row][-1]
    assert row["loss_scale"] == 2.0**15


def test_a_damaged_vocabulary_beside_the_run_changes_nothing(settings, finished, capsys):
    """A run goes on with that of its checkpoint, which was verified, and mends the other."""
    vocab = finished / "data/vocab.txt"
    words = vocab.read_text()
    vocab.write_text(words.replace("cat", "bat"))
    capsys.readouterr()
    pretrain(PretrainConfig(**settings), finished)
    assert vocab.read_text() == words
    assert (finished / "pretrain/final/vocab.txt").read_text() == words
    assert "preparing" not in capsys.readouterr().out
