"""kbert's optimizers are used as Keras' are: `keras.optimizers.AdamW` is the peer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow

from kbert.errors import UserError
from kbert.train import AdamW
from kbert.train.optimizer import LAMB, SGD

NAMES = ("kernel", "embeddings", "bias", "gamma", "beta", "decoder")
SHAPE = (2, 3)
NUMBERS = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-12}
BERTS = ("bias", "gamma", "beta")  # which kbert never decays


def variables():
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=SHAPE), dtype="float32", name=name) for name in NAMES]


def steps(optimizer, change=lambda optimizer, step: None, count=6, excluded=None):
    """Values of the variables after steps with gradients from a normal distribution."""
    weights, rng = variables(), np.random.default_rng(1)
    if excluded:
        optimizer.exclude_from_weight_decay(**excluded(weights))
    for step in range(count):
        change(optimizer, step)
        optimizer.apply([tf.constant(rng.normal(size=SHAPE), "float32") for _ in weights], weights)
    return np.array([weight.numpy() for weight in weights])


def both(rate, change=lambda optimizer, step: None, by_name=(), by_index=(), decay=0.3, **kwargs):
    """The values by kbert and by Keras, which needs BERT's exclusions to be said."""
    ours = AdamW(rate, decay, bias_correction=True, **NUMBERS, **kwargs)
    theirs = keras.optimizers.AdamW(rate, decay, **NUMBERS, **kwargs)

    def excluded(names):
        return lambda weights: {
            "var_list": [weights[i] for i in by_index],
            "var_names": list(names),
        }

    return (
        steps(ours, change, excluded=excluded(by_name)),
        steps(theirs, change, excluded=excluded((*BERTS, *by_name))),
    )


def check(found, expected):
    # float32; epsilon, which Keras adds before the bias correction, is too small to matter
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("by_name", "by_index", "undecayed"),
    [
        *slow(((), (), set(BERTS))),
        (["embed", "^dec"], (), {*BERTS, "embeddings", "decoder"}),
        *slow(((), [0], {*BERTS, "kernel"})),
        (["embed"], [0, 5], set(NAMES)),
    ],
)
def test_exclusion_from_weight_decay(by_name, by_index, undecayed):
    found, expected = both(0.05, by_name=by_name, by_index=by_index)
    check(found, expected)
    plain, _ = both(0.05, decay=0.0)
    same = np.isclose(found, plain, rtol=1e-6).all(axis=(1, 2))
    assert {name for name, is_same in zip(NAMES, same, strict=True) if is_same} == undecayed


@pytest.mark.parametrize("cls", [AdamW, LAMB, SGD])
def test_exclusions_are_in_the_config(cls):
    optimizer = cls(0.1, weight_decay=0.2)
    weights = variables()
    optimizer.exclude_from_weight_decay(var_list=weights[:1], var_names=["embed"])
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for each in (optimizer, again, cls.from_config(again.get_config())):
        each.build(weights)
        assert each.decays == [False, False, False, False, False, True]


def test_exclusion_comes_before_the_first_step():
    optimizer = AdamW()
    optimizer.build(variables())
    expected = "exclude_from_weight_decay must be called before the optimizer is built, that is, "
    with pytest.raises(UserError, match=expected):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])


@pytest.mark.parametrize(
    "rate",
    [
        0.05,
        keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5),
        keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.02, 0.0]),
        *slow(lambda: tf.constant(0.07)),
    ],
    ids=["float", "exponential", "piecewise", "function"],
)
def test_learning_rates(rate):
    check(*both(rate))


@pytest.mark.parametrize(
    "value",
    [0.02, tf.constant(0.02), *slow(np.float32(0.02), keras.Variable(0.02))],
    ids=["float", "tensor", "numpy", "variable"],
)
def test_the_learning_rate_can_be_assigned(value):
    def change(optimizer, step):
        if step == 3:
            optimizer.learning_rate = value
            assert float(optimizer.learning_rate) == pytest.approx(0.02)

    check(*both(0.1, change))


def test_a_schedule_can_be_assigned_and_not_replaced_by_a_number():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)

    def change(optimizer, step):
        if step == 3:
            optimizer.learning_rate = schedule

    check(*both(0.1, change))
    with pytest.raises(TypeError, match="created with a `LearningRateSchedule`"):
        AdamW(schedule).learning_rate = 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.5},
        {"gradient_accumulation_steps": 3},
        *slow(
            {"global_clipnorm": 0.5},
            {"clipvalue": 0.3},
            {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
            {"loss_scale_factor": 8.0},
        ),
    ],
    ids=lambda options: next(iter(options)),
)
def test_arguments_of_every_optimizer(options):
    check(*both(0.05, **options))


def test_attributes_have_the_names_of_the_arguments():
    optimizer = AdamW(0.1, 0.2, 0.3, 0.4, 0.5, layer_decay=0.6, bias_correction=True)
    peer = keras.optimizers.AdamW(0.1, 0.2, 0.3, 0.4, 0.5)
    for name in ("weight_decay", "beta_1", "beta_2", "epsilon"):
        assert getattr(optimizer, name) == getattr(peer, name)
    config = optimizer.get_config()
    assert config["bias_correction"] is True and config["layer_decay"] == 0.6
    assert AdamW(0.1, weight_decay=None).weight_decay == 0.0  # none, as in Keras
