"""The fused pieces against what `keras.ops` and automatic differentiation make of the same."""

import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from marks import slow

import kbert
from kbert.model import fused
from kbert.model.attention import Dropout

B, L, D, H = 3, 5, 12, 2
# float32: other orders of summation. The others: 11 and 8 bits, and sums of 15 rows of them.
TOLERANCES = {"float32": 1e-6, "float16": 5e-3, "bfloat16": 4e-2}
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_draws():
    """The same numbers for a test, whichever ran before."""
    global RNG
    RNG = np.random.default_rng(0)


def dense_and_norm(dtype):
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    dense = keras.layers.Dense(D, dtype=policy)
    norm = keras.layers.LayerNormalization(epsilon=1e-12, dtype=policy)
    dense.build((None, None, D))
    norm.build((None, None, D))
    for weight in (*dense.weights, *norm.weights):
        weight.assign(RNG.normal(size=weight.shape))
    return dense, norm


def drop(x, dropout, seed):
    return ops.where(fused.dropout_keep_mask(x, seed, dropout.rate), x / (1 - dropout.rate), 0.0)


def pieces(dtype, rate):
    """name -> (the fused function, its definition, the tensors, the weights)."""
    dense, norm = dense_and_norm(dtype)
    dropout = Dropout(rate, seed=1)
    seed = tf.constant([1, 0])  # of its first call

    def tensor(*shape):
        return tf.cast(RNG.normal(size=shape), dtype)

    def exact(x):
        return ops.cast(x, "float32")

    def times_dense(x):
        return exact(ops.matmul(x, ops.cast(dense.kernel, dtype))) + exact(
            ops.cast(dense.bias, dtype)
        )

    def norm_of(x):
        return exact(norm(exact(x)))

    def softmax(scores, bias):
        weights = ops.softmax(exact(scores) * 0.3 + exact(bias))
        return drop(weights, dropout, seed) if rate else weights

    def dense_add_norm(x, residual):
        x = times_dense(x)
        return norm_of((drop(x, dropout, seed) if rate else x) + exact(residual))

    def heads(x):
        return ops.transpose(ops.reshape(times_dense(x), (B, L, H, D // H)), (0, 2, 1, 3))

    x, residual, scores = tensor(B, L, D), tensor(B, L, D), tensor(B, H, L, L)
    bias = tf.cast(RNG.integers(0, 2, (B, 1, 1, L)) * -9.0, dtype)

    def scoped(function):
        def run(*tensors):
            with keras.src.backend.AutocastScope(dtype):
                return function(*tensors)

        return run

    kernel = [v.value for v in dense.weights]
    both = kernel + [v.value for v in norm.weights]
    return {
        "dropout": (
            lambda x: dropout(x, training=True),
            lambda x: drop(exact(x), dropout, seed) if rate else exact(x),
            [x],
            [],
        ),
        "gelu": (
            lambda x: fused.dense_gelu(dense, x, False, True),
            lambda x: ops.gelu(times_dense(x), approximate=False),
            [x],
            kernel,
        ),
        "gelu_new": (
            lambda x: fused.dense_gelu(dense, x, True, True),
            lambda x: ops.gelu(times_dense(x), approximate=True),
            [x],
            kernel,
        ),
        "dense_add_norm": (
            lambda x, r: fused.dense_add_norm(dense, dropout, norm, x, r, True),
            dense_add_norm,
            [x, residual],
            both,
        ),
        "add_norm": (
            lambda x, r: fused.add_norm(norm, x, r, True),
            lambda x, r: norm_of(exact(x) + exact(r)),
            [x, residual],
            [v.value for v in norm.weights],
        ),
        "attention_weights": (
            lambda s: fused.attention_weights(s, bias, 0.3, dropout, True),
            lambda s: softmax(s, bias),
            [scores],
            [],
        ),
        "dense_heads": (lambda x: fused.dense_heads(dense, x, H, True), heads, [x], kernel),
        "add_bias": (
            lambda x: fused.add_bias(x, dense.bias, True),
            lambda x: exact(x) + exact(ops.cast(dense.bias, dtype)),
            [x],
            kernel[1:],
        ),
    }, scoped


NAMES = [
    *("dropout", "gelu", "gelu_new", "dense_add_norm", "add_norm"),
    *("attention_weights", "dense_heads", "add_bias"),
]


@pytest.mark.parametrize("in_graph", [*slow(False), True])
@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_equal_the_definition(name, dtype, rate, in_graph):
    table, scoped = pieces(dtype, rate)
    piece, definition, tensors, weights = table[name]
    slope = tf.constant(RNG.normal(size=scoped(definition)(*tensors).shape), tf.float32)

    def compute(function, *tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = ops.cast(scoped(function)(*tensors), "float32")
            total = tf.reduce_sum(value * slope)
        return [value, *tape.gradient(total, [*tensors, *weights])]

    run = tf.function(compute, autograph=False) if in_graph else compute
    for got, wanted in zip(run(piece, *tensors), compute(definition, *tensors), strict=True):
        got, wanted = (np.array(tf.cast(x, tf.float32)) for x in (got, wanted))
        # The slope of the tanh form holds 1 - tanh^2, which loses digits where tanh is near 1.
        scale = max(1, abs(wanted).max()) * (5 if name == "gelu_new" else 1)
        atol = TOLERANCES[dtype] * scale
        np.testing.assert_allclose(got, wanted, atol=atol)


@pytest.mark.parametrize("in_graph", [False, True])
def test_cross_entropy(in_graph):
    logits = tf.constant(RNG.normal(size=(B, L, 7)) * 20, tf.float32)
    labels = tf.constant(RNG.integers(0, 7, (B, L)), tf.int32)
    slope = tf.constant(RNG.normal(size=(B, L)), tf.float32)

    def compute(function):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = function(logits, labels)
            total = tf.reduce_sum(losses * slope)
        return losses, tape.gradient(total, logits)

    def definition(logits, labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)

    run = tf.function(compute, autograph=False) if in_graph else compute
    for got, wanted in zip(run(fused.cross_entropy), compute(definition), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-6)


def test_labels_beyond_the_classes_give_nan():
    losses = fused.cross_entropy(tf.zeros((3, 7)), tf.constant([7, -1, 6])).numpy()
    np.testing.assert_allclose(losses, [np.nan, np.nan, np.log(7)], rtol=1e-6)


def test_hard_logits_give_finite_losses():
    logits = tf.constant([[-3e38, 3e38], [0.0, -np.inf]])
    losses = fused.cross_entropy(logits, tf.constant([1, 0])).numpy()
    np.testing.assert_array_equal(losses, [0, 0])


def draws(seed, shape=(1000, 1000), rate=0.1):
    return np.array(fused.dropout_keep_mask(tf.zeros(shape), tf.constant(seed, tf.int32), rate))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share(rate):
    """A million draws, five standard deviations."""
    dropped = (~draws([7, 3], rate=rate)).mean()
    assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / 1e6)


def test_draws_of_rows_columns_and_neighbours_are_independent():
    kept = draws([11, 0])
    dropped = ~kept
    for axis in (0, 1):  # means of 1,000 draws; the extreme one of 1,000 of them
        assert abs(dropped.mean(axis=axis) - 0.1).max() < 5 * math.sqrt(0.09 / 1000)
    flat = dropped.ravel()
    for lag in (1, 2, 3, 64, 128, 768, 1000):
        both = (flat[lag:] & flat[:-lag]).mean()
        assert abs(both - 0.01) < 5 * math.sqrt(0.0099 / 1e6), lag


def test_draws_of_seeds_are_independent():
    """Also of seeds that differ in a bit, as those of successive calls do."""
    first = ~draws([1234, 0])
    for seed in ([1234, 1], [1234, 2], [1235, 0], [0, 1234], [1234, 2**30]):
        both = (first & ~draws(seed)).mean()
        assert abs(both - 0.01) < 5 * math.sqrt(0.0099 / 1e6), seed
    flat = first.ravel()
    other = ~draws([1234, 1]).ravel()
    for shift in range(1, 50):  # nor is one the other, shifted
        both = (flat[shift:] & other[:-shift]).mean()
        assert abs(both - 0.01) < 6 * math.sqrt(0.0099 / 1e6), shift


def test_parts_are_kept_as_the_whole_is():
    whole = draws([77, -1], shape=(12, 5, 7))
    for parts in (2, 3, 12):
        size = 12 // parts
        found = [draws([77, -1 - i], shape=(size, 5, 7)) for i in range(parts)]
        np.testing.assert_array_equal(np.concatenate(found), whole)
    assert (whole != draws([78, -1], shape=(12, 5, 7))).any()


def test_dropout_keeps_the_mean_and_is_repeated_by_its_seed():
    x = tf.ones((400, 500))
    once, again = (np.array(fused.dropout(x, tf.constant([5, 6]), 0.2)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert set(np.unique(once)) == {0.0, np.float32(1.25)}
    assert abs(once.mean() - 1) < 5 * 0.5 / math.sqrt(200_000)


KEPT = """
import json, keras, resource, statistics, sys, tensorflow as tf
from keras import ops
from kbert.model import fused
from kbert.model.attention import Dropout

N = 2048
dense, norm = keras.layers.Dense(N), keras.layers.LayerNormalization()
dense.build((None, N))
norm.build((None, N))
dropout, usual, mask = Dropout(0.1, seed=1), keras.layers.Dropout(0.1), tf.zeros((1, 1, 1, N))
pieces = {
    "dropout": (lambda x: dropout(x, training=True), lambda x: usual(x, training=True)),
    "gelu": (
        lambda x: fused.dense_gelu(dense, x, False, True),
        lambda x: ops.gelu(dense(x), approximate=False),
    ),
    "dense_add_norm": (
        lambda x: fused.dense_add_norm(dense, dropout, norm, x, x, True),
        lambda x: norm(x + usual(dense(x), training=True)),
    ),
    "attention_weights": (
        lambda x: fused.attention_weights(x[None, None], mask, 0.3, dropout, True),
        lambda x: usual(ops.softmax(x[None, None] * 0.3 + mask), training=True),
    ),
}

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def kept(function):
    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        held = tf.numpy_function(lambda _: resident(), [tf.reduce_sum(value)], tf.int64)
        with tf.control_dependencies([held]):
            slope = tf.fill(tf.shape(value), 2.0)
        return held, tape.gradient(value, x, slope)[0, 0]

    x = tf.ones((N, N))
    found = []
    for _ in range(7):  # what the first two take is kept for the next
        before = resident()
        held, _ = step(x)
        found.append((int(held) - before) / (4 * N * N))
    return statistics.median(found[2:])

print(json.dumps({name: [kept(f) for f in both] for name, both in pieces.items()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sets glibc's malloc")
def test_less_is_kept_for_the_backward_pass_than_by_a_chain_of_ops():
    """In tensors of the size of the input."""
    # So that every tensor goes back to the system as soon as nobody holds it.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_ENABLE_ONEDNN_OPTS": "0"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", KEPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    wanted = {"dropout": 0, "gelu": 1, "dense_add_norm": 1, "attention_weights": 2}
    for name, (ours, chain) in found.items():
        # The chain keeps 0.25 more at least: a mask of bytes.
        assert ours == pytest.approx(wanted[name], abs=0.2) and ours < chain - 0.1, found


def test_the_pieces_of_a_step_are_compiled():
    """Else nothing would be gained: what takes long op by op is only in what XLA compiles."""
    config = kbert.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = kbert.BertForPreTraining(config)
    ids, slots = tf.ones((2, 8), tf.int32), tf.ones((2, 3), tf.int32)
    features = {"input_ids": ids, "token_type_ids": ids, "attention_mask": ids}
    features["masked_positions"] = slots

    def step():
        with tf.GradientTape() as tape:
            outputs = model(features, training=True)
            losses = fused.cross_entropy(outputs["mlm_logits"], slots)
            total = tf.reduce_sum(losses)
        return tape.gradient(total, [v.value for v in model.trainable_variables])

    graph = tf.function(step, autograph=False).get_concrete_function().graph.as_graph_def()
    compiled = [f for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    others = [f for f in graph.library.function if not f.attr["_XlaMustCompile"].b]
    nodes = [*graph.node, *(node for f in others for node in f.node_def)]
    slow = {"Erf", "Exp", "Softmax", "Rsqrt", "SquaredDifference", "RandomUniform", "BitwiseXor"}
    # The LayerNorm of the MLM head is left out: it takes the few masked slots alone.
    assert not [node.name for node in nodes if node.op in slow and "/mlm" not in node.name]
    assert {"Erf", "Exp", "Softmax", "Rsqrt", "BitwiseXor"} <= {
        node.op for f in compiled for node in f.node_def
    }
