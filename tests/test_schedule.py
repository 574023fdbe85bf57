"""Learning rates as functions of the step, and the flags that choose them."""

import keras
import numpy as np
import pytest
from keras.optimizers.schedules import CosineDecay

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train.schedule import (
    WarmupPolynomialDecay,
    WarmupStableDecay,
    make_schedule,
)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (5, 0.5), (9, 0.9), (10, 0.9), (50, 0.5), (100, 0.0), (120, 0.0)]
)
def test_the_polynomial_is_that_of_google(step, rate):
    # optimization.py: polynomial decay from step 0, replaced by the warm-up before step 10.
    assert float(WarmupPolynomialDecay(1.0, 100, 10)(step)) == pytest.approx(rate, abs=1e-7)


def test_without_warmup():
    assert float(WarmupPolynomialDecay(2.0, 10, 0)(0)) == 2.0


@pytest.mark.parametrize(("step", "rate"), [(5, 0.5), (50, 0.25), (90, 0.01), (100, 0.0)])
def test_a_power(step, rate):
    schedule = WarmupPolynomialDecay(1.0, 100, 10, power=2.0)
    assert float(schedule(step)) == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (5, 1.0), (10, 2.0), (35, 1.7071068), (60, 1.0), (110, 0.0), (130, 0.0)],
)
def test_half_a_cosine(step, rate):
    schedule = make_schedule(config_of(lr_schedule="cosine", learning_rate=2.0, decay_steps=110))
    assert float(schedule(step)) == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (5, 1.0), (10, 2.0), (80, 2.0), (85, 1.0), (89, 0.6583592), (100, 0.0), (120, 0.0)],
)
def test_a_cooldown_by_the_square_root(step, rate):
    assert float(WarmupStableDecay(2.0, 100, 10, 20)(step)) == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupPolynomialDecay(1e-3, 100, 10, 0.5),
        WarmupStableDecay(1e-3, 100, 10, 20),
    ],
)
def test_schedules_survive_serialization(schedule):
    schedules = keras.optimizers.schedules
    again = schedules.deserialize(schedules.serialize(schedule))
    assert type(again) is type(schedule) and again.get_config() == schedule.get_config()
    assert float(again(90)) == float(schedule(90)) > 0


@pytest.mark.slow
def test_schedules_are_those_of_hf():
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")

    def rates(make, **settings):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = make(optimizer, num_warmup_steps=10, num_training_steps=100, **settings)
        found = []
        for _ in range(101):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    cosine = rates(optimization.get_cosine_schedule_with_warmup)
    stable = rates(optimization.get_wsd_schedule, num_decay_steps=20, decay_type="1-sqrt")
    for schedule, expected in (
        (CosineDecay(0.0, 90, warmup_target=0.3, warmup_steps=10), cosine),
        (WarmupStableDecay(0.3, 100, 10, 20), stable),
    ):
        found = [float(schedule(step)) for step in range(101)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def config_of(**settings):
    return PretrainConfig(
        **{"input": "x", "train_steps": 50, "warmup_steps": 10, "learning_rate": 0.5} | settings
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, WarmupPolynomialDecay(0.5, 50, 10)),
        ({"decay_power": 2.0, "decay_steps": 70}, WarmupPolynomialDecay(0.5, 70, 10, 2.0)),
        (
            {"lr_schedule": "cosine", "decay_steps": 60},
            CosineDecay(0.0, 50, warmup_target=0.5, warmup_steps=10),
        ),
        ({"lr_schedule": "warmup_stable_decay"}, WarmupStableDecay(0.5, 50, 10, 10)),
        (
            {"lr_schedule": "warmup_stable_decay", "cooldown_steps": 7, "decay_steps": 60},
            WarmupStableDecay(0.5, 60, 10, 7),
        ),
    ],
)
def test_flags_choose_the_schedule(settings, expected):
    schedule = make_schedule(config_of(**settings))
    assert type(schedule) is type(expected) and schedule.get_config() == expected.get_config()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_schedule": "wsd"}, "lr_schedule must be one of linear, cosine, warmup_stable_decay"),
        ({"cooldown_steps": 5}, "--cooldown_steps requires --lr_schedule=warmup_stable_decay; got"),
        (
            {"lr_schedule": "cosine", "decay_power": 2.0},
            "--decay_power requires --lr_schedule=linear; got cosine.",
        ),
        (
            {"lr_schedule": "warmup_stable_decay", "cooldown_steps": 41},
            r"warmup_steps \+ cooldown_steps must be <= decay_steps, 50; got 10 \+ 41.",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        config_of(**settings)
