"""Freezing and LoRA: what is trained, and that merged weights compute the same."""

import keras
import numpy as np
import pytest

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model import BertForSequenceClassification, BertModel

N, D, C, RANK = 3, 12, 4, 2
CONFIG = BertConfig(
    vocab_size=17,
    hidden_size=D,
    num_hidden_layers=N,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=11,
    num_labels=C,
)
IDS = np.random.default_rng(0).integers(0, 17, (5, 7))


def with_adapters(cls=BertForSequenceClassification, alpha=None):
    """A model whose adapters do something: B is no longer 0."""
    keras.utils.set_random_seed(0)
    model = cls(CONFIG)
    model.add_lora(RANK, alpha)
    rng = np.random.default_rng(1)
    for _, b, _ in model.adapters().values():
        b.assign(rng.normal(size=b.shape))
    return model


def test_what_adapters_train():
    model = with_adapters()
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert trained == N * 2 * 2 * RANK * D + D * C + C
    assert len(model.trainable_variables) == 4 * N + 2


def test_fresh_adapters_change_nothing():
    keras.utils.set_random_seed(0)
    model = BertForSequenceClassification(CONFIG)
    before = model(IDS)["logits"].numpy()
    model.add_lora(RANK)
    np.testing.assert_array_equal(model(IDS)["logits"], before)


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_merged_weights_compute_the_same(alpha, tmp_path):
    """What is saved holds W + alpha / rank * A B, here computed by numpy."""
    model = with_adapters(alpha=alpha)
    model.save_pretrained(tmp_path)
    merged = BertForSequenceClassification.from_pretrained(tmp_path)
    np.testing.assert_allclose(merged(IDS)["logits"], model(IDS)["logits"], atol=1e-5)
    name = "bert/encoder/layer_1/attention/value/kernel"
    a, b, _ = model.adapters()[name]
    scale = (2 * RANK if alpha is None else alpha) / RANK
    expected = model.named_weights()[name].numpy() + scale * a.numpy() @ b.numpy()
    np.testing.assert_allclose(merged.named_weights()[name], expected, atol=1e-6)
    assert merged.adapters() == {}
    frozen = BertForSequenceClassification(CONFIG)
    assert merged.named_weights().keys() == frozen.named_weights().keys()


@pytest.mark.slow
def test_adapters_learn_with_fit():
    model = with_adapters()
    weights = {name: np.array(weight) for name, weight in model.named_weights().items()}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-2), loss={"logits": loss}, jit_compile=False)
    labels = {"logits": np.arange(5) % C}
    history = model.fit({"input_ids": IDS}, labels, epochs=60, batch_size=5, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    for name, weight in model.named_weights().items():
        same = np.array_equal(weights[name], weight)
        assert same == name.startswith("bert"), name


@pytest.mark.parametrize("layers", [0, 2, N])
@pytest.mark.parametrize("cls", [BertModel, BertForSequenceClassification])
def test_frozen_layers_are_not_trained(cls, layers):
    model = cls(CONFIG)
    model.freeze_encoder(layers)
    frozen = ("bert/embeddings", *(f"bert/encoder/layer_{i}/" for i in range(layers)))
    for name, weight in model.named_weights().items():
        assert weight.trainable != name.startswith(frozen), name
    named = model.named_weights()
    assert len(model.trainable_variables) == len(named) - 5 - 16 * layers


def test_freezing_all_of_the_encoder():
    model = BertForSequenceClassification(CONFIG)
    model.freeze_encoder(None)
    assert len(model.trainable_variables) == 2


def test_too_many_layers():
    with pytest.raises(UserError, match=r"layers to freeze must be 0 to 3, .*; got 4"):
        BertModel(CONFIG).freeze_encoder(4)
