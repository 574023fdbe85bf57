"""A run whose length is given as a time."""

import pytest
from run_files import stop_at
from tiny_runs import assert_same_run

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.settings.training import time_budget_seconds
from kbert.train import pretrain, time_budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("1h", 3600),
        ("2h30m", 9000),
        ("1d 2h 3m 4.5s", 93784.5),
        ("1.5H", 5400),
    ],
)
def test_times(text, seconds):
    assert time_budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1h30", "30m1h", "0s", "-1h", "1.2.3s", "1 hour", "∞s"])
def test_what_is_no_time(text):
    with pytest.raises(UserError) as caught:
        PretrainConfig(input="x", time_budget=text)
    expected = "must be a time > 0 with units, such as 90s, 30m, 2h30m or 1.5d; got"
    assert str(caught.value) == f"time_budget {expected} {text!r}."


@pytest.mark.parametrize("name", ["train_steps", "decay_steps"])
def test_a_time_and_a_number_of_steps_exclude_each_other(name):
    with pytest.raises(UserError, match=rf"--{name} and --time_budget cannot be combined.*Remove"):
        PretrainConfig(input="x", time_budget="1h", **{name: 9})


def test_steps_replace_the_time_unless_they_are_set():
    config = PretrainConfig(input="x", time_budget="1h", warmup_steps=7)
    assert (config.train_steps, config.eval_every_steps) == (None, None)
    chosen = config.with_steps(train_steps=100, warmup_steps=10, eval_every_steps=10)
    assert chosen == PretrainConfig(input="x", train_steps=100, warmup_steps=7, eval_every_steps=10)
    with pytest.raises(UserError, match="warmup_steps must be < train_steps; got 7 and 7"):
        config.with_steps(train_steps=7)


@pytest.fixture
def budget(settings, monkeypatch):
    """Settings with a time in place of the steps: real steps are timed, and take a second each."""
    time_steps = time_budget._time_steps

    def a_second(trainer, seconds):
        assert 0 < time_steps(trainer, 0.1) < 1
        return 1.0

    monkeypatch.setattr(time_budget, "_time_steps", a_second)
    del settings["train_steps"]
    return settings


@pytest.mark.slow
def test_a_run_of_a_time_is_the_run_of_its_steps(budget, whole, tmp_path, monkeypatch, capsys):
    """Timing leaves no trace, and the number of steps is kept when the run resumes."""
    run, config = tmp_path / "run", PretrainConfig(**budget, time_budget="12.9s")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        pretrain(config, run)
    assert "time budget of 12.9s: 12 steps of 1.0000 s" in capsys.readouterr().out
    assert "--train_steps=12\n" in (run / "pretrain/run.flags").read_text()
    pretrain(config, run)
    assert "time budget" not in capsys.readouterr().out
    assert_same_run(whole, run)
    for other, start in (("1h", run), ("12.9s", whole)):
        with pytest.raises(UserError, match="cannot change the number of steps of a run that was"):
            pretrain(PretrainConfig(**budget, time_budget=other), start)


def test_a_time_too_short_for_a_run(budget, tmp_path):
    with pytest.raises(UserError, match=r"--time_budget=9s is too short: a step takes 1.00 s, and"):
        pretrain(PretrainConfig(**budget, time_budget="9s"), tmp_path / "run")
    assert not (tmp_path / "run/pretrain").exists()


@pytest.mark.slow
def test_a_dry_run_tells_what_the_time_allows(budget, tmp_path, capsys):
    pretrain(PretrainConfig(**budget, time_budget="1h"), tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().out
    assert "time budget of 1h: 3,600 steps of 1.0000 s" in printed
    assert "data: 3,600 steps of 120 tokens with padding, 432,000 in total; " in printed
    assert not (tmp_path / "run/pretrain").exists()
