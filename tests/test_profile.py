"""Profiles of some steps of a run."""

import math
import types

import pytest

from kbert.errors import UserError
from kbert.train.profile import Profiler, profiled_steps


def test_steps():
    assert profiled_steps("10,13") == (10, 13)


@pytest.mark.parametrize("text", ["10", "13,10", "5,5", "a,b", "-1,3", "1,2,3"])
def test_other_steps_are_one_line(text):
    with pytest.raises(
        UserError, match=r"profile must be START,STOP: two step numbers with .*; got"
    ) as error:
        profiled_steps(text)
    assert "\n" not in str(error.value)


def built(text, step, train_steps=12):
    """A profiler of a run that is at a step."""
    profiler = Profiler(text)
    workload = types.SimpleNamespace(train_steps=train_steps)
    profiler.trainer = types.SimpleNamespace(step=step, workload=workload)
    profiler.on_build()


def test_steps_that_a_run_does_not_have(capsys):
    built("3,5", step=3)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"before the last step, 12; got 12,14\. Use .*=9,12$"):
        built("12,14", step=0)
    built("3,5", step=4)
    assert capsys.readouterr().out == "note: step 3 of --profile has passed; nothing is profiled\n"


def test_steps_left():
    profiler = Profiler("10,13")
    assert [profiler.steps_left(step) for step in (0, 9, 10, 12)] == [10, 1, 3, 1]
    assert profiler.steps_left(13) == math.inf
