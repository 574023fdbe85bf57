"""Losses, schedule and optimizer against plain numpy and google-research/bert's formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kbert.config import BertConfig, PretrainConfig
from kbert.model import BertForPreTraining
from kbert.train.losses import pretraining_loss, pretraining_sums
from kbert.train.metrics import Sums
from kbert.train.optimizer import AdamW, make_optimizer
from kbert.train.schedule import WarmupLinearDecay


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def batch(B=3, L=7, M=4, V=11, seed=0):
    rng = np.random.default_rng(seed)
    outputs = {
        "mlm_logits": rng.normal(size=(B, M, V)).astype("float32"),
        "nsp_logits": rng.normal(size=(B, 2)).astype("float32"),
    }
    features = {
        "attention_mask": (np.arange(L) < [[7], [5], [6]]).astype("int32"),
        "masked_ids": rng.integers(0, V, (B, M)).astype("int32"),
        "masked_weights": np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], "float32"),
        "next_sentence_labels": np.array([0, 1, 1], "int32"),
    }
    return outputs, features


def test_sums_and_loss_equal_numpy():
    outputs, features = batch()
    sums = {k: v.numpy() for k, v in pretraining_sums(outputs, features).items()}
    logits, ids = outputs["mlm_logits"], features["masked_ids"]
    losses = -np.take_along_axis(log_softmax(logits), ids[..., None], -1)[..., 0]
    counted = features["masked_weights"] == 1
    nsp = -np.take_along_axis(
        log_softmax(outputs["nsp_logits"]), features["next_sentence_labels"][:, None], -1
    )
    assert sums["mlm_count"] == 6 and sums["nsp_count"] == 3 and sums["tokens"] == 18
    np.testing.assert_allclose(sums["mlm_loss"], losses[counted].sum(), rtol=1e-6)
    np.testing.assert_allclose(sums["nsp_loss"], nsp.sum(), rtol=1e-6)
    assert sums["mlm_correct"] == (logits.argmax(-1) == ids)[counted].sum()
    expected = losses[counted].mean() + nsp.mean()
    np.testing.assert_allclose(pretraining_loss(sums), expected, rtol=1e-6)


def test_a_batch_without_a_slot_that_counts_has_no_mlm_loss():
    outputs, features = batch()
    features["masked_weights"][:] = 0
    sums = pretraining_sums(outputs, features)
    window = Sums()
    window.add(sums)
    assert window.metrics()["mlm_loss"] == 0
    assert float(pretraining_loss(sums)) == pytest.approx(window.metrics()["nsp_loss"])


def test_padding_slots_do_not_count():
    outputs, features = batch()
    before = pretraining_sums(outputs, features)
    padding = features["masked_weights"] == 0
    outputs["mlm_logits"][padding] = 1e3
    after = pretraining_sums(outputs, features)
    assert float(before["mlm_loss"]) == float(after["mlm_loss"])


def test_sums_of_two_batches_weigh_every_slot_alike():
    window, losses, counts = Sums(), [], []
    for seed in (1, 2):
        outputs, features = batch(seed=seed)
        if seed == 2:
            features["masked_weights"][:] = 1  # 12 slots against 6
        sums = pretraining_sums(outputs, features)
        window.add(sums)
        losses.append(float(sums["mlm_loss"]))
        counts.append(float(sums["mlm_count"]))
    assert counts == [6, 12]
    assert window.metrics()["mlm_loss"] == pytest.approx(sum(losses) / 18)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (5, 0.5), (9, 0.9), (10, 0.9), (50, 0.5), (100, 0.0), (120, 0.0)]
)
def test_schedule_is_that_of_google(step, rate):
    # optimization.py: polynomial decay from step 0, replaced by the warm-up before step 10.
    assert float(WarmupLinearDecay(1.0, 100, 10)(step)) == pytest.approx(rate, abs=1e-7)


def test_schedule_without_warmup():
    assert float(WarmupLinearDecay(2.0, 10, 0)(0)) == 2.0


def test_schedule_config_round_trip():
    schedule = WarmupLinearDecay(1e-3, 100, 10)
    again = WarmupLinearDecay.from_config(schedule.get_config())
    assert float(again(7)) == float(schedule(7))


def adam_weight_decay(parameter, gradients, rate, decay):
    """AdamWeightDecayOptimizer.apply_gradients of google-research/bert, in float64."""
    m = v = np.zeros_like(parameter)
    for gradient in gradients:
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        update = m / (np.sqrt(v) + 1e-6) + decay * parameter
        parameter = parameter - rate * update
    return parameter


def test_adamw_is_that_of_google():
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=(3, 5)) for name in ("kernel", "bias", "gamma", "beta")}
    gradients = [{name: rng.normal(size=(3, 5)) for name in start} for _ in range(7)]
    variables = [keras.Variable(value, name=name, dtype="float32") for name, value in start.items()]
    optimizer = AdamW(0.01, weight_decay=0.1)
    for step in gradients:
        optimizer.apply([tf.constant(step[v.name], tf.float32) for v in variables], variables)
    for variable in variables:
        name = variable.name
        decay = 0.1 if name == "kernel" else 0.0
        expected = adam_weight_decay(start[name], [g[name] for g in gradients], 0.01, decay)
        # float32 against float64, seven steps
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_adamw_decays_kernels_and_embeddings_only():
    model = BertForPreTraining(
        BertConfig(
            vocab_size=13,
            hidden_size=6,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=10,
            max_position_embeddings=9,
        )
    )
    optimizer = make_optimizer(PretrainConfig(input="x"))
    optimizer.build(model.trainable_variables)
    for name, weight in model.named_weights().items():
        decayed = name.endswith(("/kernel", "/embeddings"))
        assert optimizer._use_weight_decay(weight) == decayed, name


def test_adamw_config_round_trip():
    optimizer = AdamW(0.1, weight_decay=0.2, beta_1=0.3, beta_2=0.4, epsilon=0.5)
    config = AdamW.from_config(optimizer.get_config()).get_config()
    assert [config[k] for k in ("weight_decay", "beta_1", "beta_2", "epsilon")] == [
        0.2,
        0.3,
        0.4,
        0.5,
    ]
