"""One update of the weights: what it computes, and that it does not depend on how."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow

from kbert.config import BertConfig
from kbert.model import BertForPreTraining
from kbert.settings import PretrainConfig
from kbert.train import step as step_module
from kbert.train.distribution import Devices
from kbert.train.losses import PretrainingObjective
from kbert.train.optimizer import make_optimizer
from kbert.train.schedule import make_schedule
from kbert.train.step import TrainStep
from kbert.train.workers import Workers

B, L, M, V = 8, 9, 3, 17
BERT = {
    "vocab_size": V,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 11,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def features_of(seed=0):
    """Rows of 4 to 9 tokens with 1 to 3 slots that count."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, L + 1, (B, 1))
    return {
        "input_ids": rng.integers(0, V, (B, L)).astype("int32"),
        "attention_mask": (np.arange(L) < lengths).astype("int32"),
        "token_type_ids": (np.arange(L) > lengths // 2).astype("int32"),
        "masked_positions": rng.integers(0, 4, (B, M)).astype("int32"),
        "masked_ids": rng.integers(0, V, (B, M)).astype("int32"),
        "masked_weights": (np.arange(M) < rng.integers(1, M + 1, (B, 1))).astype("float32"),
        "next_sentence_labels": rng.integers(0, 2, B).astype("int32"),
    }


def make_step(bert=(), jit=False, weights=None, **settings):
    """A TrainStep on one device; SGD at a rate of 0.5 without decay unless asked otherwise."""
    defaults = {"optimizer": "sgd", "learning_rate": 0.5, "train_steps": 10**6, "warmup_steps": 0}
    config = PretrainConfig(**{"input": "x", "global_batch_size": B} | defaults | settings)
    keras.utils.set_random_seed(3)
    model = BertForPreTraining(BertConfig(**BERT | NO_DROPOUT | dict(bert)), dtype=config.precision)
    model.bert.encoder.remat = config.remat
    rng = np.random.default_rng(4)
    for weight in model.trainable_variables:
        weight.assign(weight + rng.normal(size=weight.shape) * 0.3)
    schedule = make_schedule(config)
    optimizer = make_optimizer(config, schedule)
    optimizer.build(model.trainable_variables)
    devices = Devices(Workers(tf.distribute.get_strategy()), jit, "CPU")
    return TrainStep(model, optimizer, schedule, devices, config, PretrainingObjective(B))


def take(step, count=1, first=0, seed=0):
    """Takes steps on one batch; returns the rows as a dict of arrays (count,)."""
    batches = iter(tf.data.Dataset.from_tensors(features_of(seed)).repeat())
    rows, _ = step.take(batches, tf.constant(first, tf.int64), tf.constant(count))
    rows = rows.numpy()
    assert rows.shape == (count, len(step.value_names))
    return dict(zip(step.value_names, rows.T, strict=True))


def weights_of(step):
    return {name: np.array(weight) for name, weight in step.model.named_weights().items()}


def largest_difference(first, second):
    a, b = weights_of(first), weights_of(second)
    assert a.keys() == b.keys()
    return max(np.abs(a[name] - b[name]).max() for name in a)


def test_a_step_is_gradient_descent_on_the_mean_losses():
    step, features = make_step(clip_norm=1e9), features_of()
    model = step.model
    with tf.GradientTape() as tape:
        sums = PretrainingObjective(B).sums(model(features, training=True), features)
        loss = sums["mlm_loss"] / features["masked_weights"].sum() + sums["nsp_loss"] / B
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    expected = [
        np.array(v) - 0.5 * np.array(tf.convert_to_tensor(g))
        for v, g in zip(model.trainable_variables, gradients, strict=True)
    ]
    rows = take(step)
    norm = np.sqrt(sum(np.square(tf.convert_to_tensor(g)).sum() for g in gradients))
    np.testing.assert_allclose(rows["gradient_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(rows["mlm_loss"], float(sums["mlm_loss"]), rtol=1e-6)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6, err_msg=variable.path)


def test_gradients_are_clipped_as_a_whole():
    step = make_step(clip_norm=0.01)
    before = weights_of(step)
    assert take(step)["gradient_norm"][0] > 0.1  # reported as it was
    after = weights_of(step)
    moved = np.sqrt(sum(np.square(after[name] - before[name]).sum() for name in before))
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("slices", "optimizer"),
    [
        *slow((4, "adamw"), (2, "sgd"), (8, "sgd"), (4, "lamb")),
    ],
)
def test_slices_make_no_difference(slices, optimizer):
    settings = {"optimizer": optimizer, "learning_rate": 0.1, "adam_epsilon": 1e-2}
    whole, cut = make_step(**settings), make_step(accumulation_steps=slices, **settings)
    for seed in range(3):
        rows, others = take(whole, 3, 3 * seed, seed), take(cut, 3, 3 * seed, seed)
        for name in rows:
            np.testing.assert_allclose(rows[name], others[name], rtol=2e-6, err_msg=name)
    assert largest_difference(whole, cut) < 1e-6


@pytest.mark.slow
def test_the_number_of_steps_in_a_call_makes_no_difference():
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    one, several = make_step(dropout), make_step(dropout)
    rows = [take(one, 1, i) for i in range(4)]
    others = take(several, 4)
    for name in others:
        assert [row[name][0] for row in rows] == others[name].tolist(), name
    assert largest_difference(one, several) == 0


@pytest.mark.slow
def test_xla_makes_little_difference():
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    plain, compiled = (make_step(dropout, jit, accumulation_steps=2) for jit in (False, True))
    rows, others = take(plain, 5), take(compiled, 5)
    np.testing.assert_allclose(rows["mlm_loss"], others["mlm_loss"], rtol=1e-5)
    assert largest_difference(plain, compiled) < 1e-5  # other orders of summation


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", *slow("lamb")])
def test_xla_compiles_the_whole_step(optimizer):
    """As TPUs need it, where one program runs on all devices and none has a number before."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    settings = {"optimizer": optimizer, "accumulation_steps": 2, "adam_epsilon": 1e-2}
    plain, whole = make_step(dropout, **settings), make_step(dropout, **settings)
    rows = take(plain, 3)

    @tf.function(jit_compile=True, autograph=False)
    def compiled(features, step, replica):
        count = whole._objective.count(features)
        sums, gradients = whole._summed_gradients(features, count, step, replica)
        return whole._guarded_update(sums, gradients, step, replica)

    features = {name: tf.constant(value) for name, value in features_of().items()}
    steps, replica = tf.range(3, dtype=tf.int64), tf.constant(0)
    found = [compiled(features, step, replica).numpy() for step in steps]
    losses = [row[whole.value_names.index("mlm_loss")] for row in found]
    np.testing.assert_allclose(losses, rows["mlm_loss"], rtol=1e-5)
    assert largest_difference(plain, whole) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_rematerialization_makes_no_difference(jit):
    """With dropout, so that the second computation has to drop what the first one dropped."""
    dropout = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    kept, again = make_step(dropout, jit), make_step(dropout, jit, remat=True)
    rows, others = take(kept, 5), take(again, 5)
    np.testing.assert_allclose(rows["mlm_loss"], others["mlm_loss"], rtol=1e-5)
    assert largest_difference(kept, again) < 1e-5


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_step_and_place_in_the_batch():
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}

    def loss(first=0, **settings):
        return float(take(make_step(dropout, **settings), 1, first)["mlm_loss"][0])

    whole = loss()
    assert whole == loss()
    assert len({whole, loss(first=1), loss(seed=1)}) == 3
    assert loss(accumulation_steps=2) == pytest.approx(whole, rel=1e-6)  # another order of sums
    # two slices of the same rows drop different units
    step = make_step(dropout, accumulation_steps=2)
    half = {name: value[: B // 2] for name, value in features_of().items()}
    sums = [
        float(step._slice_gradients(half, 8.0, tf.constant(0, tf.int64), i)[0]["mlm_loss"])
        for i in (0, 1)
    ]
    assert sums[0] != sums[1]


@pytest.mark.slow
def test_mixed_precision_learns_like_float32():
    losses = [
        take(make_step(precision=precision, learning_rate=0.1), 20)["mlm_loss"]
        for precision in ("float32", "mixed_bfloat16", "mixed_float16")
    ]
    assert losses[0][-1] < 0.8 * losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    np.testing.assert_allclose(losses[2], losses[0], rtol=0.01)


def scale_of(step):
    return float(step.loss_scale), int(step.named_variables()["loss_scale/good"])


@pytest.mark.parametrize("jit", [False, *slow(True)])
def test_an_overflow_is_skipped_and_halves_the_scale(jit):
    step = make_step(precision="mixed_float16", jit=jit)
    assert scale_of(step) == (2.0**15, 0)
    assert take(step)["overflows"] == 0 and scale_of(step) == (2.0**15, 1)
    step.loss_scale.assign(2.0**30)  # far above what float16 can hold
    before = weights_of(step)
    rows = take(step)
    assert (rows["overflows"][0], rows["not_finite"][0], rows["gradient_norm"][0]) == (1, 0, 0)
    assert rows["mlm_loss"][0] > 0  # the loss itself is good
    assert scale_of(step) == (2.0**29, 0)
    for name, value in weights_of(step).items():
        np.testing.assert_array_equal(value, before[name])
    assert int(step.optimizer.iterations) == 1
    rows = take(step, 20, 1)
    assert 5 < rows["overflows"].sum() < 20 and rows["not_finite"].sum() == 0
    assert rows["gradient_norm"][-1] > 0 and scale_of(step)[0] == 2.0 ** (
        29 - rows["overflows"].sum()
    )


def test_the_scale_grows_again(monkeypatch):
    monkeypatch.setattr(step_module, "GROWTH_STEPS", 3)
    step = make_step(precision="mixed_float16")
    take(step, 4)
    assert scale_of(step) == (2.0**16, 1)


@pytest.mark.slow
def test_the_scale_cancels_out():
    steps = [make_step(precision="mixed_float16") for _ in range(2)]
    steps[1].loss_scale.assign(2.0**13)
    rows = [take(step, 3) for step in steps]
    np.testing.assert_allclose(rows[0]["gradient_norm"], rows[1]["gradient_norm"], rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", *slow("mixed_bfloat16", "mixed_float16")])
def test_a_step_that_is_not_finite_changes_no_weight(precision):
    step = make_step(precision=precision, optimizer="adamw")
    take(step)
    bias = step.model.named_weights()["mlm/output_bias"]
    good = np.array(bias)
    bias.assign(np.where(np.arange(V) == 5, np.inf, good))
    before = weights_of(step)
    rows = take(step, 2, 1)
    assert rows["not_finite"].tolist() == [1, 1] and rows["overflows"].tolist() == [0, 0]
    assert rows["mlm_loss"].tolist() == [0, 0] and rows["tokens"].tolist() == [0, 0]
    assert rows["steps"].tolist() == [1, 1]
    for name, value in weights_of(step).items():
        np.testing.assert_array_equal(value, before[name])
    bias.assign(good)
    assert take(step, 1, 3)["not_finite"] == 0


def test_a_gradient_that_is_not_finite_at_scale_one_counts(monkeypatch):
    step = make_step(precision="mixed_float16")
    step.loss_scale.assign(1.0)
    monkeypatch.setattr(
        PretrainingObjective,
        "loss",
        lambda self, sums, count: (sums["mlm_loss"] + sums["nsp_loss"]) * 1e38,
    )
    rows = take(step)
    assert (rows["overflows"][0], rows["not_finite"][0]) == (0, 1) and scale_of(step)[0] == 1.0


def test_what_a_checkpoint_keeps():
    step = make_step(precision="mixed_float16", optimizer="lamb")
    names = list(step.named_variables())
    weights = list(step.model.named_weights())
    assert names[0] == "iterations" and names[-2:] == ["loss_scale/scale", "loss_scale/good"]
    assert sorted(names[1:-2]) == sorted(
        f"{slot}/{weight}" for slot in ("momentum", "velocity") for weight in weights
    )
    for name, variable in step.named_variables().items():
        if name.startswith("momentum/"):
            assert variable.shape == step.model.named_weights()[name[9:]].shape


@pytest.mark.slow
def test_waiting_for_a_batch_is_measured():
    """Steps whose batches take a second each, less what is made meanwhile; and ready ones."""
    step = make_step()

    def late(features):
        tf.py_function(lambda: time.sleep(1.0), [], [])
        return features

    ready = tf.data.Dataset.from_tensors(features_of()).repeat()
    waits = []
    for dataset in (ready.map(late), ready):
        batches = iter(dataset)
        _, waited = step.take(batches, tf.constant(0, tf.int64), tf.constant(2))
        waits.append(float(waited))
    assert waits[0] >= 0.99 and 0 <= waits[1] < waits[0]
