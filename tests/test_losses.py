"""Losses and schedule against plain numpy and google-research/bert's formulas."""

import collections

import numpy as np
import pytest

from kbert.train.losses import MaskedLMObjective, PretrainingObjective

pytestmark = pytest.mark.smoke
OBJECTIVE = PretrainingObjective(3)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def metrics_of(*sums):
    window = collections.Counter()
    for values in sums:
        window.update({name: float(value) for name, value in values.items()})
    return OBJECTIVE.metrics(window)


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
    sums = {k: v.numpy() for k, v in OBJECTIVE.sums(outputs, features).items()}
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
    np.testing.assert_allclose(OBJECTIVE.loss(sums, 6.0), expected, rtol=1e-6)


def test_without_next_sentence_prediction_the_loss_is_that_of_the_words():
    outputs, features = batch()
    both = OBJECTIVE.sums(outputs, features)
    objective = MaskedLMObjective()
    alone = objective.sums({"logits": outputs["mlm_logits"]}, features)
    assert {n: float(x) for n, x in alone.items()} == {n: float(both[n]) for n in objective.names}
    metrics = objective.metrics(collections.Counter(alone))
    assert float(metrics["loss"]) == pytest.approx(float(objective.loss(alone, 6.0)))
    assert metrics["loss"] == metrics["mlm_loss"] and set(metrics) == {
        *("loss", "mlm_loss", "mlm_accuracy")
    }
    assert np.isnan([*objective.metrics(collections.Counter()).values()]).all()


def test_losses_of_the_parts_of_a_batch_add_up():
    """Parts with 3, 1 and 2 slots that count: the means of the parts would not."""
    outputs, features = batch()
    whole = OBJECTIVE.sums(outputs, features)
    parts = [
        OBJECTIVE.sums(*({k: v[i : i + 1] for k, v in d.items()} for d in (outputs, features)))
        for i in range(3)
    ]
    added = sum(float(OBJECTIVE.loss(part, 6.0)) for part in parts)
    assert added == pytest.approx(float(OBJECTIVE.loss(whole, 6.0)), rel=1e-6)


def test_a_batch_without_a_slot_that_counts_has_no_mlm_loss():
    outputs, features = batch()
    features["masked_weights"][:] = 0
    sums = OBJECTIVE.sums(outputs, features)
    assert metrics_of(sums)["mlm_loss"] == 0
    assert float(OBJECTIVE.loss(sums, 0.0)) == pytest.approx(metrics_of(sums)["nsp_loss"])


def test_padding_slots_do_not_count():
    outputs, features = batch()
    before = OBJECTIVE.sums(outputs, features)
    padding = features["masked_weights"] == 0
    outputs["mlm_logits"][padding] = 1e3
    after = OBJECTIVE.sums(outputs, features)
    assert float(before["mlm_loss"]) == float(after["mlm_loss"])


def test_sums_of_two_batches_weigh_every_slot_alike():
    parts, losses, counts = [], [], []
    for seed in (1, 2):
        outputs, features = batch(seed=seed)
        if seed == 2:
            features["masked_weights"][:] = 1  # 12 slots against 6
        sums = OBJECTIVE.sums(outputs, features)
        parts.append(sums)
        losses.append(float(sums["mlm_loss"]))
        counts.append(float(sums["mlm_count"]))
    assert counts == [6, 12]
    assert metrics_of(*parts)["mlm_loss"] == pytest.approx(sum(losses) / 18)
