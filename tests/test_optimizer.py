"""AdamW, LAMB, Muon and SGD against plain numpy in float64; what is decayed."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow

from kbert.config import BertConfig
from kbert.model import BertForPreTraining, BertForSequenceClassification
from kbert.settings import PretrainConfig
from kbert.train.optimizer import LAMB, SGD, AdamW, Muon, layer_scales, make_optimizer
from kbert.train.schedule import make_schedule

RATE, DECAY, STEPS = 0.01, 0.1, 20
CONFIG = BertConfig(
    vocab_size=13,
    hidden_size=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=10,
    max_position_embeddings=9,
)


def adamw(value, gradients, decay):
    """AdamWeightDecayOptimizer.apply_gradients of google-research/bert."""
    m = v = np.zeros_like(value)
    for gradient in gradients:
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        value = value - RATE * (m / (np.sqrt(v) + 1e-6) + decay * value)
    return value


def corrected(value, gradients, decay):
    """Adam (Kingma and Ba 2015, algorithm 1), decay decoupled."""
    m = v = np.zeros_like(value)
    for t, gradient in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        mean, square = m / (1 - 0.9**t), v / (1 - 0.999**t)
        value = value - RATE * (mean / (np.sqrt(square) + 1e-6) + decay * value)
    return value


def corrected_adamw(*arguments, **kwargs):
    return AdamW(*arguments, bias_correction=True, **kwargs)


def lamb(value, gradients, decay):
    """Algorithm 2 of You et al. 2020; what is not decayed has a trust ratio of 1."""
    m = v = np.zeros_like(value)
    for t, gradient in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + decay * value
        ratio = np.linalg.norm(value) / np.linalg.norm(update) if decay else 1.0
        value = value - RATE * ratio * update
    return value


def muon(value, gradients, decay):
    """Jordan et al. 2024 with the scale of Liu et al. 2025, section 2.2, by singular values.

    The iterations map each singular value by a polynomial and keep the singular vectors.
    """
    m = np.zeros_like(value)
    for gradient in gradients:
        m = 0.95 * m + gradient
        u, s, v = np.linalg.svd(gradient + 0.95 * m, full_matrices=False)
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        update = 0.6 * np.sqrt(max(value.shape)) * (u * s) @ v + decay * value
        value = value - RATE * update
    return value


def muon_or_adam(value, gradients, decay, name):
    in_block = "/layer_" in name and name.endswith("kernel")
    return (muon if in_block else corrected)(value, gradients, decay)


def sgd(value, gradients, decay):
    for gradient in gradients:
        value = value - RATE * (gradient + decay * value)
    return value


def decayed(name):
    """By the names in the model: kernels and tables of embeddings, nothing else."""
    return name.split("/")[-1] in ("kernel", "embeddings")


def model_and_gradients():
    """Weights of a model, and 20 gradients of each, from normal distributions."""
    model = BertForPreTraining(CONFIG)
    weights, rng = model.named_weights(), np.random.default_rng(0)
    start, gradients = {}, {}
    for name, weight in weights.items():
        start[name] = rng.normal(size=weight.shape)
        weight.assign(start[name])
        gradients[name] = rng.normal(size=(STEPS, *weight.shape))
    return model, start, gradients


@pytest.mark.parametrize("way", [*slow("keras"), "whole"])
@pytest.mark.parametrize(
    ("optimizer", "formula"),
    [(AdamW, adamw), (corrected_adamw, corrected), (LAMB, lamb), (Muon, muon_or_adam), (SGD, sgd)],
    ids=lambda x: x.__name__,
)
def test_twenty_steps_equal_numpy(optimizer, formula, way):
    """As `fit` applies gradients, and as the training step does."""
    model, start, gradients = model_and_gradients()
    variables = model.trainable_variables
    names = {id(weight): name for name, weight in model.named_weights().items()}
    optimizer = optimizer(RATE, weight_decay=DECAY)
    optimizer.build(variables)
    assert len(variables) == len(names) == 30
    for step in range(STEPS):
        now = [tf.constant(gradients[names[id(v)]][step], tf.float32) for v in variables]
        if way == "keras":
            optimizer.apply(now, variables)
        else:
            optimizer.apply_on_replica(
                now, tf.constant(1.0), tf.constant(RATE), lambda variable: variable.value
            )
    assert int(optimizer.iterations) == STEPS
    for name, weight in model.named_weights().items():
        named = {"name": name} if formula is muon_or_adam else {}
        decay = DECAY if decayed(name) else 0.0
        expected = formula(start[name], gradients[name], decay, **named)
        # float32 against float64 over 20 steps
        np.testing.assert_allclose(weight, expected, rtol=2e-5, atol=2e-6, err_msg=name)


def test_updates_of_muon_are_nearly_orthogonal_and_have_the_given_size():
    """Wide and tall kernels; the iterations bring singular values near 1, not to 1."""
    for shape in ((8, 40), (40, 8), (16, 16)):
        gradient = tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)
        new, _ = Muon.step(
            *(gradient, tf.constant(1.0), tf.zeros(shape)),
            *([tf.zeros(shape)] * 2, tf.constant(1.0), tf.constant(1.0)),
            **{"decays": False, "orthogonal": True, "weight_decay": 0.0, "momentum": 0.95},
            **{"rms_rate": 0.2, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-6},
        )
        values = np.linalg.svd(new.numpy(), compute_uv=False) / (0.2 * np.sqrt(max(shape)))
        assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "sgd"])
def test_biases_and_layer_norm_are_not_decayed(name):
    model = BertForPreTraining(CONFIG)
    optimizer = make_optimizer(PretrainConfig(input="x", optimizer=name), 0.1)
    optimizer.build(model.trainable_variables)
    names = {id(weight): name for name, weight in model.named_weights().items()}
    found = {
        names[id(variable)]: decays
        for variable, decays in zip(model.trainable_variables, optimizer.decays, strict=True)
    }
    assert found == {name: decayed(name) for name in model.named_weights()}
    assert sum(found.values()) == 3 + 6 + 1 + 1 + 1  # tables, block, pooler, transform, NSP


def test_lamb_leaves_the_ratio_at_one_for_zeros():
    variable = keras.Variable(np.zeros((2, 3), "float32"), name="kernel")
    optimizer = LAMB(0.5, weight_decay=0.0)
    optimizer.apply([tf.ones((2, 3))], [variable])
    np.testing.assert_allclose(variable.numpy(), -0.5, rtol=1e-5)


def test_settings_reach_the_optimizer():
    config = PretrainConfig(
        input="x",
        optimizer="lamb",
        learning_rate=2.0,
        weight_decay=0.3,
        adam_epsilon=0.4,
        train_steps=90,
        decay_steps=100,
        warmup_steps=0,
        decay_power=2.0,
    )
    optimizer = make_optimizer(config, make_schedule(config))
    assert type(optimizer) is LAMB
    numbers = {"weight_decay": 0.3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 0.4}
    assert {name: getattr(optimizer, name) for name in numbers} == numbers
    optimizer.build([keras.Variable(np.zeros(2), name="kernel")])
    optimizer.iterations.assign(50)
    assert float(optimizer.learning_rate) == pytest.approx(0.5)


@pytest.mark.parametrize("cls", [AdamW, LAMB, Muon])
def test_config_round_trip(cls):
    optimizer = cls(0.1, weight_decay=0.2, beta_1=0.3, beta_2=0.4, epsilon=0.5, layer_decay=0.6)
    config = cls.from_config(optimizer.get_config()).get_config()
    names = ("weight_decay", "beta_1", "beta_2", "epsilon", "layer_decay")
    assert [config[name] for name in names] == [0.2, 0.3, 0.4, 0.5, 0.6]
    assert SGD.from_config(SGD(0.1, weight_decay=0.2).get_config()).weight_decay == 0.2


@pytest.mark.parametrize("way", ["keras", "whole"])
def test_lower_layers_get_lower_rates(way):
    """The rates are read off what SGD does with gradients of 1."""
    model = BertForSequenceClassification(dataclasses.replace(CONFIG, num_hidden_layers=3))
    variables = model.trainable_variables
    optimizer = SGD(0.5, layer_decay=0.8)
    optimizer.build(variables)
    before = {name: np.array(weight) for name, weight in model.named_weights().items()}
    ones = [tf.ones(v.shape) for v in variables]
    if way == "keras":
        optimizer.apply(ones, variables)
    else:
        halves = [one / 2 for one in ones]
        optimizer.apply_on_replica(halves, tf.constant(2.0), tf.constant(0.5), lambda v: v.value)
    powers = {"sequence_classifier": 0, "bert/pooler": 0, "bert/embeddings": 4}
    powers |= {f"bert/encoder/layer_{i}": 3 - i for i in range(3)}
    for name, weight in model.named_weights().items():
        (power,) = (power for part, power in powers.items() if name.startswith(part))
        rate = before[name] - np.array(weight)
        np.testing.assert_allclose(rate, 0.5 * 0.8**power, rtol=1e-4, err_msg=name)


def test_no_layer_decay_gives_every_layer_the_same_rate():
    paths = ["bert/embeddings/word_embeddings/embeddings", "bert/encoder/layer_0/x", "mlm/bias"]
    assert layer_scales(paths, 1.0) == [1, 1, 1]
    assert layer_scales(["mlm/bias"], 0.5) == [1]
