"""Several texts in a row: the model computes for each what it computes in a row of its own."""

import numpy as np
import pytest
import tensorflow as tf
from marks import slow
from test_model import assert_close, config_of, randomize

from kbert.data.packed_rows import lay_out
from kbert.errors import UserError
from kbert.model import BertForEmbedding, BertForMaskedLM, BertForPreTraining, BertModel
from kbert.model.inference_ops import constant_weights, onnx_compatible_ops
from kbert.train.losses import MaskedLMObjective

L, V = 13, 53
LENGTHS, COUNTS = np.array([5, 3, 4, 11]), np.array([3, 1])  # 12 and 11 tokens in two rows
SEQUENCE_IDS, POSITION_IDS, FIRST = lay_out(LENGTHS, COUNTS, L)
MASKED = [[1, 3], [1], [], [2, 5, 9]]  # positions in the texts
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def texts():
    rng = np.random.default_rng(0)
    return [
        {
            "input_ids": rng.integers(1, V, n),
            "token_type_ids": (np.arange(n) > n // 2).astype(int),
            "masked": list(zip(masked, rng.integers(0, V, len(masked)).tolist(), strict=True)),
        }
        for n, masked in zip(LENGTHS, MASKED, strict=True)
    ]


def masked_features(rows, M):
    """rows: for each row a list of (position, id)."""
    features = {
        "masked_positions": np.zeros((len(rows), M), "int32"),
        "masked_ids": np.zeros((len(rows), M), "int32"),
        "masked_weights": np.zeros((len(rows), M), "float32"),
    }
    for row, slots in enumerate(rows):
        for slot, (position, label) in enumerate(slots):
            for name, value in zip(features, (position, label, 1), strict=True):
                features[name][row, slot] = value
    return features


def padded():
    features = {
        name: np.stack([np.pad(text[name], (0, L - len(text[name]))) for text in texts()])
        for name in ("input_ids", "token_type_ids")
    }
    mask = {"attention_mask": (np.arange(L) < LENGTHS[:, None]).astype("int32")}
    return features | mask | masked_features([text["masked"] for text in texts()], 3)


def packed():
    real, rows = SEQUENCE_IDS > 0, [[] for _ in COUNTS]
    features = {"position_ids": POSITION_IDS, "sequence_ids": SEQUENCE_IDS}
    for name in ("input_ids", "token_type_ids"):
        features[name] = np.zeros(real.shape, "int32")
        features[name][real] = np.concatenate([text[name] for text in texts()])
    for first, text in zip(FIRST.tolist(), texts(), strict=True):
        row, offset = divmod(first, L)
        rows[row] += [(offset + position, label) for position, label in text["masked"]]
    return features | {"attention_mask": real.astype("int32")} | masked_features(rows, 4)


def tokens(outputs, features):
    """(12 + 11, D), the outputs of all tokens, text by text."""
    return np.asarray(outputs)[features["attention_mask"] == 1]


def loss_and_gradients(model, features):
    objective = MaskedLMObjective()
    with tf.GradientTape() as tape:
        sums = objective.sums(model(features, training=True), features)
        loss = objective.loss(sums, sums["mlm_count"])
    weights = [weight.value for weight in model.named_weights().values()]
    return [loss, *map(tf.convert_to_tensor, tape.gradient(loss, weights))]


def test_hidden_states_are_those_of_padded_rows():
    model = randomize(BertModel(config_of(), output_hidden_states=True))
    for form in (constant_weights, onnx_compatible_ops):
        with form():
            outputs, expected = model(packed()), model(padded())
        for one, other in zip(outputs["hidden_states"], expected["hidden_states"], strict=True):
            assert_close(tokens(one, packed()), tokens(other, padded()))
    assert_close(outputs["pooler_output"][0], expected["pooler_output"][0])
    without_mask = {name: x for name, x in packed().items() if name != "attention_mask"}
    assert_close(
        tokens(model(without_mask)["last_hidden_state"], packed()),
        tokens(expected["last_hidden_state"], padded()),
    )


@pytest.mark.parametrize("remat", [False, *slow(True)])
def test_losses_and_gradients_are_those_of_padded_rows(remat):
    model = randomize(BertForMaskedLM(config_of(**NO_DROPOUT)))
    model.bert.encoder.remat = remat
    found, expected = (loss_and_gradients(model, features) for features in (packed(), padded()))
    names = ["loss", *model.named_weights()]
    for name, one, other in zip(names, found, expected, strict=True):
        scale = max(1.0, abs(other.numpy()).max())
        np.testing.assert_allclose(one, other, atol=1e-5 * scale, err_msg=name)


@pytest.mark.slow
def test_half_precision_stays_finite():
    """Padding attends to padding alone, or to nothing."""
    model = randomize(BertForMaskedLM(config_of(), dtype="mixed_float16"))
    exact = BertForMaskedLM(config_of())
    for name, weight in exact.named_weights().items():
        weight.assign(model.named_weights()[name])
    logits, expected = model(packed())["logits"], exact(packed())["logits"]
    assert np.isfinite(logits).all()
    assert_close(logits, expected.numpy(), 0.1)


def test_several_texts_need_positions_of_their_own():
    features = {name: x for name, x in packed().items() if name != "position_ids"}
    with pytest.raises(UserError, match=r"sequence_ids requires position_ids that restart at 0"):
        BertForMaskedLM(config_of())(features)


@pytest.mark.parametrize("cls", [BertForPreTraining, BertForEmbedding])
def test_models_with_one_output_per_row_take_one_text_per_row(cls):
    fields = {"embedding": {"pooling": "mean"}} if cls is BertForEmbedding else {}
    message = f"{cls.__name__} has an output for each row, .* Remove sequence_ids and position_ids"
    with pytest.raises(UserError, match=message):
        cls(config_of(**fields))(packed())
