"""`.keras` files: `import kbert` is enough to load them; frozen weights and adapters are kept."""

import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import kbert
from kbert.model import BertForSequenceClassification, BertModel
from kbert.model.attention import Dense
from kbert.train import AdamW
from kbert.utils.keras_registration import CLASSES, _Placeholder

ROOT = pathlib.Path(kbert.__file__).parent
CONFIG = kbert.BertConfig(
    vocab_size=17,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=11,
    num_labels=4,
)
IDS = np.random.default_rng(0).integers(0, 17, (5, 7))
LABELS = {"logits": np.arange(5) % 4}


def test_every_registered_class_has_a_stand_in():
    pattern = r'@keras\.saving\.register_keras_serializable\("kbert"\).*\nclass (\w+)\('
    found = {}
    for path in ROOT.rglob("*.py"):
        module = ".".join(("kbert", *path.relative_to(ROOT).with_suffix("").parts))
        found[module] = set(re.findall(pattern, path.read_text(encoding="utf-8")))
    assert {module: names for module, names in found.items() if names} == {
        module: set(names) for module, names in CLASSES.items()
    }


@pytest.mark.parametrize("order", ["kbert, keras", "keras, kbert"])
def test_the_order_of_the_imports_does_not_matter(order, tmp_path):
    """With a package in Keras' place, which shows the registry."""
    (tmp_path / "keras.py").write_text(
        "class saving:\n    objects = {}\n    get_custom_objects = classmethod(lambda c: c.objects)"
    )
    script = (
        f"import importlib.util\nimport {order}\nimportlib.util.find_spec('keras')\n"
        "print(len(keras.saving.objects), 'kbert>BertModel' in keras.saving.objects)"
    )
    path = f"{tmp_path}:{ROOT.parent}"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == f"{sum(map(len, CLASSES.values()))} True\n", done.stderr


def test_a_stand_in_creates_the_class():
    config = BertModel(CONFIG).get_config()
    assert type(_Placeholder("kbert.model.models", "BertModel").from_config(config)) is BertModel


def loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def names_of(weights):
    return [weight.path for weight in weights]


def freeze_blocks(model):
    model.freeze_encoder(1)


def freeze_by_layers(model):
    model.bert.trainable = False
    model.bert.encoder.blocks[1].trainable = True
    model.bert.encoder.trainable = True
    model.bert.encoder.blocks[0].attention.trainable = False


def freeze_all(model):
    model.trainable = False


def freeze_a_weight(model):
    model.sequence_classifier.output_dense.bias.trainable = False


@pytest.mark.parametrize("freeze", [freeze_blocks, freeze_by_layers, freeze_all, freeze_a_weight])
def test_what_is_frozen_stays_frozen(freeze):
    """Also the flags of layers, which decide what `layer.trainable = True` would change."""
    model = BertForSequenceClassification(CONFIG)
    freeze(model)
    again = BertForSequenceClassification.from_config(model.get_config())
    assert names_of(again.trainable_weights) == names_of(model.trainable_weights)
    assert len(model.trainable_weights) < len(model.weights)
    pairs = zip(model._flatten_layers(), again._flatten_layers(), strict=True)
    assert all(a.name == b.name and a.trainable == b.trainable for a, b in pairs)


def test_a_model_of_the_users_own_keeps_it(tmp_path):
    ids = keras.Input((None,), dtype="int32")
    bert = BertModel(CONFIG)
    bert.freeze_encoder(1)
    model = keras.Model(ids, keras.layers.Dense(3)(bert(ids)["pooler_output"]))
    again = loaded(model, tmp_path)
    assert names_of(again.trainable_weights) == names_of(model.trainable_weights)
    np.testing.assert_array_equal(again(IDS), model(IDS))


def compiled_with_adapters(optimizer):
    keras.utils.set_random_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification({**CONFIG.to_dict(), **quiet})
    model.add_lora(2, alpha=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(1e-2), loss={"logits": loss})
    return model


def check_same(model, again):
    assert names_of(again.trainable_weights) == names_of(model.trainable_weights)
    assert len(again.trainable_weights) == 4 * 2 + 2
    assert [scale for *_, scale in again.adapters().values()] == [1.5] * 4
    for of in (lambda model: model.weights, lambda model: model.optimizer.variables):
        for expected, found in zip(of(model), of(again), strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=expected.path)


def test_adapters_and_their_optimizer_are_kept(tmp_path):
    """Bit for bit: the kernel, A and B apart, and the slots of A and B."""
    model = compiled_with_adapters(AdamW)
    model.optimizer.build(model.trainable_variables)
    for i, variable in enumerate((*model.weights, *model.optimizer.variables[2:])):
        variable.assign(variable + 0.01 * i)
    check_same(model, loaded(model, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [AdamW, keras.optimizers.AdamW])
def test_training_of_adapters_continues(optimizer, tmp_path):
    model = compiled_with_adapters(optimizer)
    model.fit(IDS, LABELS, epochs=2, batch_size=5, verbose=0)
    again = loaded(model, tmp_path)
    check_same(model, again)
    for each in (model, again):
        each.fit(IDS, LABELS, epochs=2, batch_size=5, verbose=0)
    check_same(model, again)


def test_weights_without_adapters_leave_them_able_to_learn(tmp_path):
    """Keras sets A and B to 0: no gradient would reach either."""
    plain, model = BertForSequenceClassification(CONFIG), BertForSequenceClassification(CONFIG)
    plain.save_weights(tmp_path / "x.weights.h5")
    model.add_lora(2)
    model.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(model(IDS)["logits"], plain(IDS)["logits"])
    assert all(np.any(a) and not np.any(b) for a, b, _ in model.adapters().values())
    model.save_weights(tmp_path / "y.weights.h5")
    with pytest.raises(ValueError, match="A total of 4 objects could not be loaded"):
        plain.load_weights(tmp_path / "y.weights.h5")


def test_save_pretrained_writes_the_sum_and_no_flags(tmp_path):
    """A folder of weights in any format is a model to fine-tune anew."""
    model = BertForSequenceClassification(CONFIG)
    model.add_lora(2)
    model.save_pretrained(tmp_path)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    assert len(again.trainable_weights) == len(again.weights) and again.adapters() == {}


def test_a_clone_keeps_adapters_and_extra_features():
    model = BertForSequenceClassification(CONFIG, extra_features="index")
    model.add_lora(2)
    again = keras.models.clone_model(model)
    assert names_of(again.trainable_weights) == names_of(model.trainable_weights)
    assert tuple(again.extra_features) == ("index",)


def test_keras_quantizes_the_matrices():
    """By itself it quantizes no subclass of Dense."""
    layer = Dense(5)
    layer.build((None, 7))
    layer.quantize("int8")
    assert layer.quantization_mode == "int8" and layer.kernel.dtype == "int8"


@pytest.mark.slow
def test_int8_reaches_every_matrix(tmp_path):
    """Adapters are then merged when they are saved, as Keras does."""
    model, again = BertForSequenceClassification(CONFIG), BertForSequenceClassification(CONFIG)
    before = model(IDS)["logits"]
    for each in (model, again):
        each.add_lora(2)
        each.quantize("int8")
    dense = [x for x in model._flatten_layers() if isinstance(x, keras.layers.Dense)]
    assert len(dense) == 2 * 6 + 2 and {layer.quantization_mode for layer in dense} == {"int8"}
    np.testing.assert_allclose(model(IDS)["logits"], before, atol=1e-3)
    model.save_weights(tmp_path / "x.weights.h5")
    again.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_allclose(again(IDS)["logits"], model(IDS)["logits"], atol=1e-6)
