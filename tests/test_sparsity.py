"""Magnitude pruning in training: which weights become 0, when, and that they stay so."""

import dataclasses
import json
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow
from run_files import stop_at, weights_of
from test_step import features_of, make_step, take
from test_step import weights_of as step_weights
from warm_python import PYTHON

import kbert
from kbert.compression.sparsity import MagnitudePruning, _pruned
from kbert.errors import UserError
from kbert.model import BertForPreTraining
from kbert.settings import FinetuneConfig, PretrainConfig
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train import finetune, pretrain
from kbert.utils.flags import as_flagfile

WORDS = ["good", "bad", "so", "the", "a", "film", "cast", "plot", "was", "."]
BERT = {
    **{"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 28, "max_position_embeddings": 24},
}


def matrices(weights):
    """The weights that are pruned, of a dict of name -> array."""
    parts = ("attention/query", "attention/key", "attention/value", "attention/output")
    parts += ("intermediate", "output")
    names = [f"bert/encoder/layer_{i}/{part}/kernel" for i in range(2) for part in parts]
    return {name: weights[name] for name in names}


def sparse_step(train_steps=40, sparsity=0.7, **settings):
    """A step of test_step with pruning from step 8 to 32 of 40."""
    settings = {"sparsity": sparsity, "sparsity_begin": 0.2, "sparsity_end": 0.8} | settings
    step = make_step(train_steps=10**6, **settings)
    step.pruning = MagnitudePruning(step.model, step._config, train_steps)
    return step


def zeros(step):
    return {name: int((w == 0).sum()) for name, w in matrices(step_weights(step)).items()}


@pytest.mark.parametrize("jit", [False, True])
def test_the_smallest_become_zero(jit):
    rng = np.random.default_rng(0)
    value = rng.normal(size=(7, 11)).astype("float32")
    value[2], value[4, :5] = 0.25, -0.25  # equals: the first go first
    value[0, :3] = [np.finfo("float32").tiny, -0.0, 1e-42]
    prune = tf.function(_pruned, jit_compile=jit)
    order = np.argsort(np.abs(value).ravel(), kind="stable")
    for count in (0, 1, 2, 20, 25, 30, 76, 77):
        expected = value.ravel().copy()
        expected[order[:count]] = 0
        found = prune(tf.constant(value), tf.constant(count)).numpy()
        if count > 3:  # XLA may take denormal numbers for 0
            np.testing.assert_array_equal(found, expected.reshape(value.shape))
        assert (found == 0).sum() >= count


@pytest.mark.parametrize("optimizer", ["adamw", *slow("sgd", "lamb")])
def test_sparsity_grows_along_the_cubic(optimizer):
    """Zhu and Gupta 2017, equation 1, from step 8 to 32 with a final sparsity of 0.7."""
    step = sparse_step(optimizer=optimizer, learning_rate=0.01)
    before, at_end = None, None
    for number in range(40):
        take(step, 1, number)
        weights = step_weights(step)
        done = min(max((number + 1 - 8) / 24, 0), 1)
        share = 0.7 - 0.7 * (1 - done) ** 3
        for name, matrix in matrices(weights).items():
            assert (matrix == 0).sum() == round(share * matrix.size), (number, name)
            if before is not None:
                assert (matrix[before[name] == 0] == 0).all(), name
                kept = (matrix != 0) & (before[name] != 0)
                assert (matrix[kept] != before[name][kept]).mean() > 0.9  # the others learn
        before = weights
        if number + 1 == 32:
            at_end = weights
    changed = {name for name in before if (before[name] == 0).any()}
    assert changed - set(matrices(before)) == set()
    for name, matrix in matrices(before).items():
        np.testing.assert_array_equal(matrix == 0, at_end[name] == 0)
        np.testing.assert_allclose((matrix == 0).mean(), 0.7, atol=0.5 / matrix.size)


def test_the_largest_stay(monkeypatch):
    """At a learning rate of almost 0 the final zeros are the smallest of the first weights."""
    step = sparse_step(learning_rate=1e-30)
    first = matrices(step_weights(step))
    take(step, 40)
    for name, matrix in matrices(step_weights(step)).items():
        smallest = np.argsort(np.abs(first[name]).ravel())[: round(0.7 * matrix.size)]
        assert set(np.flatnonzero(matrix == 0)) == set(smallest), name


def test_long_runs_rise_in_a_hundred_levels():
    model = make_step().model
    config = PretrainConfig(input="x", sparsity=0.9)
    pruning = MagnitudePruning(model, config, 100_000)
    assert (pruning.begin, pruning.end) == (10_000, 70_000)
    wanted = [levels for levels in pruning._zeros.values()]
    assert {len(levels) for levels in wanted} == {101}
    assert pruning.describe() == (
        "sparsity: 90% of each of 12 matrices (2,112 weights) becomes 0 from step 10,000 to 70,000"
    )


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"jit": True}, {"accumulation_steps": 4}])
def test_xla_and_slices_make_no_difference(changes):
    """The same weights become 0; the others differ by the order of sums."""
    steps = [sparse_step(learning_rate=0.01, **c) for c in ({}, changes)]
    for step in steps:
        take(step, 40)
    one, other = (step_weights(step) for step in steps)
    for name, value in one.items():
        np.testing.assert_array_equal(value == 0, other[name] == 0, err_msg=name)
        np.testing.assert_allclose(value, other[name], atol=1e-5, err_msg=name)


def test_pruned_weights_have_no_gradient():
    step = sparse_step()
    variables = step.model.trainable_variables
    for weight in matrices(step.model.named_weights()).values():
        weight.assign(np.where(np.abs(weight) < 0.4, 0, weight))
    gradients = [tf.ones(variable.shape) for variable in variables]
    found = step.pruning.learning(gradients, lambda variable: variable.value)
    pruned = {id(weight) for weight in matrices(step.model.named_weights()).values()}
    for gradient, variable in zip(found, variables, strict=True):
        kept = np.array(variable) != 0 if id(variable) in pruned else 1
        np.testing.assert_array_equal(gradient, np.broadcast_to(kept, gradient.shape))


@pytest.mark.slow
def test_pruned_weights_have_no_part_in_the_norm_of_the_gradient():
    step = sparse_step(learning_rate=1e-6)
    for weight in matrices(step.model.named_weights()).values():
        weight.assign(np.where(np.abs(weight) < 0.4, 0, weight))
    features = tf.nest.map_structure(tf.constant, features_of())
    number, count = tf.constant(0, tf.int64), step._objective.count(features)
    _, gradients = step._summed_gradients(features, count, number, 0)
    squares = 0.0
    for gradient, variable in zip(gradients, step.model.trainable_variables, strict=True):
        name = variable.path
        pruned = (np.array(variable) == 0) if "kernel" in name and "layer_" in name else False
        squares += np.square(np.where(pruned, 0, gradient)).sum()
    row = take(step, 1)
    np.testing.assert_allclose(row["gradient_norm"], np.sqrt(squares), rtol=1e-5)


def test_a_step_that_is_not_finite_prunes_nothing_and_the_next_one_catches_up():
    step = sparse_step(learning_rate=0.01)
    take(step, 20)
    bias = step.model.named_weights()["mlm/output_bias"]
    good = np.array(bias)
    before = zeros(step)
    bias.assign(np.full_like(good, np.inf))
    assert take(step, 12, 20)["not_finite"].tolist() == [1] * 12  # beyond the end of the schedule
    assert zeros(step) == before
    bias.assign(good)
    take(step, 1, 32)
    sizes = {name: w.size for name, w in matrices(step_weights(step)).items()}
    assert zeros(step) == {name: round(0.7 * size) for name, size in sizes.items()}


def test_a_weight_that_becomes_zero_by_chance_is_not_lost():
    step = sparse_step(learning_rate=1.0, clip_norm=1e9)
    kernel = step.model.named_weights()["bert/encoder/layer_0/output/kernel"]
    value = np.array(kernel)
    before, after = tf.constant(value), tf.constant(np.where(value > 0.3, 0.0, value + 1))
    kept = step.pruning.kept(tf.constant(0, tf.int64))
    (number,) = [i for i, w in enumerate(step.model.trainable_variables) if w is kernel]
    found = kept(number, before, after).numpy()
    np.testing.assert_array_equal(found, np.where(value > 0.3, value, value + 1))


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match=r"sparsity_begin must be < sparsity_end; got 0.5 and 0.4"):
        PretrainConfig(input="x", sparsity=0.5, sparsity_begin=0.5, sparsity_end=0.4)
    with pytest.raises(UserError, match=r"--sparsity_end is for --sparsity, which is 0"):
        PretrainConfig(input="x", sparsity_end=0.4)
    with pytest.raises(UserError, match=r"--sparsity makes zeros of the matrices that --lora_rank"):
        finetune_settings({}, sparsity=0.5, lora_rank=2)
    with pytest.raises(UserError, match=r"sparsity must be >= 0 and < 1; got 1.0"):
        PretrainConfig(input="x", sparsity=1.0)
    model = make_step().model
    model.freeze_encoder(2)
    with pytest.raises(
        UserError, match=r"no matrix of the encoder blocks is trained. Freeze fewer"
    ):
        MagnitudePruning(model, PretrainConfig(input="x", sparsity=0.5), 10)


# Runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of a BERT that knows nothing, with examples and a text."""
    folder = tmp_path_factory.mktemp("files")
    write_vocab([*SPECIAL_TOKENS, *WORDS], folder / "vocab.txt")
    tokenizer = kbert.BertTokenizer(folder / "vocab.txt")
    keras.utils.set_random_seed(0)
    config = kbert.BertConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.2, **BERT)
    BertForPreTraining(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    rng = np.random.default_rng(1)
    rows = []
    for number in range(48):
        word = WORDS[number % 3]
        text = " ".join([*rng.choice(WORDS[3:], rng.integers(1, 6)), word])
        rows.append(f"{text}\t{ {'good': 'pos', 'bad': 'neg', 'so': 'so'}[word] }\n")
    (folder / "data.tsv").write_text("".join(rows))
    lines = [" ".join(rng.choice(WORDS, 7)) if i % 6 else "" for i in range(72)]
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


def finetune_settings(files, **changes):
    names = {"train_file": "data.tsv", "eval_file": "data.tsv", "init_from": "bert"}
    paths = {name: f"{files}/{file}" for name, file in names.items()}
    settings = {"task": "classify", "batch_size": 8, "epochs": 4.0, "learning_rate": 5e-3}
    settings |= {"max_seq_length": 24, "log_every_steps": 4, "save_every_steps": 5}
    return FinetuneConfig(**paths | settings | changes)


def pretrain_settings(files, **changes):
    settings = {"input": f"{files}/text.txt", "init_from": f"{files}/bert", "train_steps": 24}
    settings |= {"warmup_steps": 2, "learning_rate": 1e-2, "max_seq_length": 20}
    settings |= {"global_batch_size": 6, "log_every_steps": 3, "save_every_steps": 5}
    return PretrainConfig(**settings | changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetuning", "pretrain"])
def test_a_stopped_run_goes_on_to_the_same_bits(kind, files, tmp_path, monkeypatch, capsys):
    """Stopped in the midst of the schedule; dropout on."""
    run, settings = {
        "pretrain": (pretrain, pretrain_settings),
        "finetuning": (finetune, finetune_settings),
    }[kind]
    config = settings(files, sparsity=0.6)
    run(config, tmp_path / "whole")
    printed = capsys.readouterr().out
    assert (
        "sparsity: 60% of each of 12 matrices (5,440 weights) becomes 0 from step 2 to 17"
        in printed
    )
    assert "| 60.0% zeros | lr" in printed
    stop_at(monkeypatch, 9)
    run(config, tmp_path / "cut")
    monkeypatch.undo()
    run(config, tmp_path / "cut")
    for name in ("final", *(["best"] if kind == "finetuning" else [])):
        whole, cut = (weights_of(tmp_path / run / kind / name) for run in ("whole", "cut"))
        for key, value in whole.items():
            np.testing.assert_array_equal(value, cut[key], err_msg=key)
        for key, matrix in matrices(whole).items():
            assert (matrix == 0).sum() == round(0.6 * matrix.size), key
    rows = (tmp_path / "cut" / kind / "metrics.jsonl").read_text().splitlines()
    found = [row["sparsity"] for row in map(json.loads, rows) if "sparsity" in row]
    assert found == sorted(found) and found[0] < 0.4
    assert found[-1] == pytest.approx(0.6, abs=1e-3)
    for name in ("sparsity_begin", "sparsity_end"):
        with pytest.raises(UserError, match=rf"{name} is 0\.5 now, but .* was written with 0\."):
            run(dataclasses.replace(config, **{name: 0.5}), tmp_path / "cut")


@pytest.mark.slow
def test_weights_that_are_not_sparse_enough_are_never_the_best(files, tmp_path, monkeypatch):
    """An early evaluation has the best score; early stopping does not count them either.

    A frozen block is left as it is.
    """
    values = iter([0.9, 0.8, 0.5, 0.6])

    def evaluation(self):
        value = next(values)
        return {"eval_accuracy": value}, value

    monkeypatch.setattr("kbert.train.finetuning.Finetuning.evaluation", evaluation)
    config = finetune_settings(files, sparsity=0.6, early_stopping_patience=1, freeze_layers=1)
    finetune(config, tmp_path / "run")
    best = weights_of(tmp_path / "run/finetuning/best")
    for key, matrix in matrices(best).items():
        share = 0.6 if "layer_1" in key else 0
        assert (matrix == 0).sum() == round(share * matrix.size), key
    assert next(values, None) is None


@pytest.mark.slow
def test_zeros_stay_where_training_goes_on_with_the_same_sparsity(files, tmp_path):
    finetune(finetune_settings(files, sparsity=0.6), tmp_path / "first")
    first = tmp_path / "first/finetuning/final"
    config = finetune_settings(files, sparsity=0.6, epochs=1.0, init_from=str(first))
    finetune(config, tmp_path / "second")
    second = matrices(weights_of(tmp_path / "second/finetuning/final"))
    for name, matrix in matrices(weights_of(first)).items():
        np.testing.assert_array_equal(matrix == 0, second[name] == 0)
        assert (matrix != second[name]).any()


@pytest.mark.slow
def test_replicas_make_no_difference(files, tmp_path):
    """Two, in a process of their own; 1e-6 is rounding. SGD: it has no epsilon to divide by."""
    config = {"sparsity": 0.6, "optimizer": "sgd", "learning_rate": 0.1, "epochs": 1.0}
    finetune(finetune_settings(files, **config), tmp_path / "one")
    mirrored = finetune_settings(files, cpu_devices=2, **config)
    (tmp_path / "x.flags").write_text(as_flagfile(mirrored, ""))
    command = [PYTHON, "-m", "kbert.finetune", f"--flagfile={tmp_path}/x.flags"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/two"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    one, two = (weights_of(tmp_path / name / "finetuning/final") for name in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_array_equal(value == 0, two[name] == 0, err_msg=name)
        np.testing.assert_allclose(two[name], value, atol=1e-6, err_msg=name)
    assert all((matrix == 0).mean() > 0.59 for matrix in matrices(one).values())
