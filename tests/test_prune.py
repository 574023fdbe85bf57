"""Fewer heads: the same numbers as with those heads masked; what matters; and the program."""

import json
import subprocess
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from run_files import stop_at, weights_of
from warm_python import PYTHON

import kbert
from kbert import BertConfig
from kbert.compression import head_pruning
from kbert.compression.head_pruning import head_importance, least_important, prune
from kbert.data.bucketed_batches import pad_examples
from kbert.errors import UserError
from kbert.inference.backends import frozen_backend
from kbert.inference.evaluation import evaluate
from kbert.model.conversion import convert
from kbert.model.weights import open_weights, remove_heads, write_weights
from kbert.settings import EvaluateConfig, FinetuneConfig, PruneConfig
from kbert.tasks.examples import read_split
from kbert.tasks.registry import make_task, write_task_settings
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train import finetune
from kbert.visualization.attention import attention_weights, write_attention

WORDS = ["good", "bad", "so", "the", "a", "film", "cast", "plot", "was", "."]
BERT = {
    **{"vocab_size": 15, "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"intermediate_size": 28, "max_position_embeddings": 24, "initializer_range": 0.3},
}
KEPT = [[1, 3], [0], [0, 1, 2, 3]]  # of the 4 heads of each layer
LABELS = {"num_labels": 3, "label_names": ("neg", "pos", "so")}
B, L, K = 3, 9, 5
TOLERANCE = 1e-5  # float32, in another order of additions


def model_of(name="BertForSequenceClassification", **config):
    """A model in which no weight is 0 or 1."""
    keras.utils.set_random_seed(0)
    model = getattr(kbert, name)(BertConfig(**BERT | LABELS | config))
    for i, weight in enumerate(model.weights):
        if len(weight.shape) == 1:
            weight.assign_add(keras.random.normal(weight.shape, stddev=0.2, seed=i))
    return model


def features_of():
    rng = np.random.default_rng(0)
    places, lengths = np.arange(L), np.array([[L], [4], [6]])
    return {
        "input_ids": rng.integers(0, 15, (B, L)).astype("int32"),
        "attention_mask": (places < lengths).astype("int32"),
        "token_type_ids": ((places > 2) & (places < lengths)).astype("int32"),
    }


def mask_heads(model, kept):
    """Makes the rows 0 by which the output projections take the heads that are not kept."""
    for block, heads in zip(model.bert.encoder.blocks, kept, strict=True):
        kernel = np.array(block.attention.output_dense.kernel)
        for head in set(range(4)) - set(heads):
            kernel[head * K : (head + 1) * K] = 0
        block.attention.output_dense.kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`full`, a classifier with its task, `pruned` to KEPT, and `data`, labeled examples."""
    root = tmp_path_factory.mktemp("folders")
    write_vocab([*SPECIAL_TOKENS, *WORDS], root / "vocab.txt")
    tokenizer = kbert.BertTokenizer(root / "vocab.txt")
    model_of().save_pretrained(root / "full")
    tokenizer.save_pretrained(root / "full")
    settings = types.SimpleNamespace(task="classify", max_seq_length=24)
    task = make_task(settings, tokenizer, LABELS["label_names"])
    write_task_settings(root / "full", task)
    (root / "pruned").mkdir()
    with open_weights(root / "full") as (config, weights):
        assert write_weights(root / "pruned", "kbert", *remove_heads(config, weights, KEPT)) == []
    tokenizer.save_pretrained(root / "pruned")
    rng = np.random.default_rng(1)
    rows = []
    for number in range(40):
        word = WORDS[number % 3]
        text = " ".join([*rng.choice(WORDS[3:], rng.integers(1, 6)), word, *rng.choice(WORDS, 2)])
        rows.append(f"{text}\t{ {'good': 'pos', 'bad': 'neg', 'so': 'so'}[word] }\n")
    (root / "data.tsv").write_text("".join(rows))
    return root


# The architecture


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (
            (2, 1),
            r"a number from 1 to 4 \(num_attention_heads\) for each of the 3 blocks; got \[2, ",
        ),
        ((2, 0, 1), r"got \[2, 0, 1\]"),
        ((2, 5, 1), r"got \[2, 5, 1\]"),
        ((2, True, 1), r"got \[2, True, 1\]"),
        ((2, 1.0, 1), r"got \[2, 1.0, 1\]"),
        (2, r"attention_heads_per_layer must be tuple; got 2 \(int\)"),
    ],
)
def test_bad_numbers_of_heads(left, message):
    with pytest.raises(UserError, match=message):
        BertConfig(**BERT, attention_heads_per_layer=left)


def test_all_heads_left_is_no_pruning(tmp_path):
    assert BertConfig(**BERT, attention_heads_per_layer=[4, 4, 4]) == BertConfig(**BERT)
    config = BertConfig(**BERT, attention_heads_per_layer=[4, 1, 2])
    assert config.attention_heads_per_layer == (4, 1, 2) and config.head_size == K
    config.save(tmp_path / "config.json")
    assert BertConfig.from_file(tmp_path / "config.json") == config


def test_weights_are_smaller(folders):
    shapes = {name: w.shape for name, w in weights_of(folders / "pruned").items()}
    layer = "bert/encoder/layer_{}/attention/{}"
    for i, heads in enumerate((2, 1, 4)):
        for name in ("query", "key", "value"):
            assert shapes[layer.format(i, f"{name}/kernel")] == (20, heads * K)
            assert shapes[layer.format(i, f"{name}/bias")] == (heads * K,)
        assert shapes[layer.format(i, "output/kernel")] == (heads * K, 20)
        assert shapes[layer.format(i, "output/bias")] == (20,)


@pytest.mark.parametrize("backend", ["keras", "tensorflow", "openvino"])
def test_outputs_are_those_of_masked_heads(folders, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    pruned = kbert.BertForSequenceClassification.from_pretrained(folders / "pruned")
    masked = mask_heads(model_of(), KEPT)
    features = features_of()
    expected = np.array(masked(features)["logits"])
    assert np.abs(np.array(model_of()(features)["logits"]) - expected).max() > 1e-2
    compute = frozen_backend(backend, pruned, "x")(
        lambda features: {"logits": pruned(features, training=False)["logits"]}, features
    )
    np.testing.assert_allclose(compute(features)["logits"], expected, atol=TOLERANCE)


def test_outputs_are_those_of_hf_with_masked_heads(folders, tmp_path):
    """HF computes the full model, in which the rows of the removed heads are made 0 in torch."""
    model_of("BertModel").save_pretrained(tmp_path / "hf", format="hf")
    hf = transformers.BertModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        for layer, heads in zip(hf.encoder.layer, KEPT, strict=True):
            for head in set(range(4)) - set(heads):
                layer.attention.output.dense.weight[:, head * K : (head + 1) * K] = 0
        features = features_of()
        tensors = {name: torch.tensor(value).long() for name, value in features.items()}
        expected = hf(**tensors)
    model_of("BertModel").save_pretrained(tmp_path / "kbert")
    (tmp_path / "pruned").mkdir()
    with open_weights(tmp_path / "kbert") as (config, weights):
        write_weights(tmp_path / "pruned", "kbert", *remove_heads(config, weights, KEPT))
    found = kbert.BertModel.from_pretrained(tmp_path / "pruned")(features)
    real = features["attention_mask"].astype(bool)
    for name in ("last_hidden_state", "pooler_output"):
        a, b = np.array(found[name]), expected[name].numpy()
        if name == "last_hidden_state":
            a, b = a[real], b[real]
        np.testing.assert_allclose(a, b, atol=TOLERANCE, err_msg=name)


@pytest.mark.slow
def test_a_pruned_model_learns_and_is_saved(folders, tmp_path):
    """Gradients reach all weights, adapters fit, and Keras' own file holds it."""
    model = kbert.BertForSequenceClassification.from_pretrained(folders / "pruned")
    model.compile("sgd", {"logits": "mse"}, run_eagerly=True)
    before = [np.array(w) for w in model.trainable_variables]
    model.train_on_batch(features_of(), {"logits": np.zeros((B, 3))})
    for weight, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(np.array(weight) - old).max() > 0 or "key/bias" in weight.path
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras", compile=False)
    features = features_of()
    np.testing.assert_array_equal(model(features)["logits"], again(features)["logits"])
    model.add_lora(rank=2)
    assert model(features)["logits"].shape == (B, 3)


@pytest.mark.parametrize("format", ["google", "hf", "keras_hub"])
def test_other_formats_have_zeros(folders, tmp_path, format):
    lines = []
    convert(folders / "pruned", tmp_path / "x", format, report=lines.append)
    (note,) = [line for line in lines if "heads" in line]
    assert note == (
        f"note: the format {format} does not support removed heads: they are written as zeros. "
        f"The outputs are the same, but the model is neither smaller nor faster."
    )
    again = kbert.BertForSequenceClassification.from_pretrained(tmp_path / "x", hidden_act="gelu")
    assert again.config.attention_heads_per_layer is None
    kernel = np.array(again.bert.encoder.blocks[0].attention.output_dense.kernel)
    assert (kernel[2 * K :] == 0).all() and (kernel[: 2 * K] != 0).all()
    pruned = kbert.BertForSequenceClassification.from_pretrained(folders / "pruned")
    features = features_of()
    np.testing.assert_allclose(
        again(features)["logits"], pruned(features)["logits"], atol=TOLERANCE
    )
    if format == "hf":
        assert "attention_heads_per_layer" not in json.loads(
            (tmp_path / "x/config.json").read_text()
        )
        hf = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "x").eval()
        tensors = {name: torch.tensor(value).long() for name, value in features.items()}
        with torch.no_grad():
            logits = hf(**tensors).logits
        np.testing.assert_allclose(logits, pruned(features)["logits"], atol=TOLERANCE)


def test_saving_warns(folders, tmp_path):
    model = kbert.BertForSequenceClassification.from_pretrained(folders / "pruned")
    with pytest.warns(UserWarning, match="does not support removed heads"):
        model.save_pretrained(tmp_path, format="hf")


def test_models_with_other_heads_are_refused(folders):
    full = model_of()
    with pytest.raises(
        UserError,
        match=r"pruned and the model have different numbers of attention heads per block: 2, 1, 4 "
        r"and none pruned. Create the model with the folder's config, as from_pretrained does.",
    ):
        full.load_pretrained(folders / "pruned")
    with pytest.raises(
        UserError,
        match=r"full: attention_heads_per_layer must match the weights "
        r"\(none pruned\); got \(2, 1, 4\). To remove heads: python -m kbert.prune",
    ):
        kbert.BertModel.from_pretrained(folders / "full", attention_heads_per_layer=(2, 1, 4))


def test_attention_of_a_pruned_model(folders, tmp_path):
    tokenizer = kbert.BertTokenizer.from_pretrained(folders / "pruned")
    tokens, weights = attention_weights(str(folders / "pruned"), tokenizer, "the good cast .")
    sums = weights.sum(axis=-1)
    assert weights.shape == (3, 4, len(tokens), len(tokens))
    for layer, heads in enumerate((2, 1, 4)):
        np.testing.assert_allclose(sums[layer, :heads], 1, atol=1e-5)
        assert (sums[layer, heads:] == 0).all()
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "kbert.visualization.plots.plot_attention_grid",
            lambda path, tokens, maps, *rest: (shown.append(maps), path.write_bytes(b""))[1],
        )
        write_attention(tmp_path, tokens, weights, head="mean", report=lambda line: None)
    np.testing.assert_allclose(shown[0].sum(axis=-1), 1, atol=1e-5)  # a mean of what is there
    write_attention(tmp_path, tokens, weights, report=lambda line: None)
    assert (tmp_path / "attention.png").stat().st_size > 1000


# What matters


_CHOICES = [
    {"text": "a film", "choices": ["good", "so bad"], "label": 1},
    {"text": "the plot .", "choices": ["bad", "so"], "label": 0},
]
CASES = {  # task: class of its model, file of examples, and what is in it
    "classify": (
        "BertForSequenceClassification",
        "x.tsv",
        "a good film\tpos\nso the cast was bad .\tneg\n",
    ),
    "tag": ("BertForTokenClassification", "x.conll", "a\tso\ngood\tpos\n\nbad\tneg\n"),
    "choice": ("BertForMultipleChoice", "x.jsonl", "\n".join(map(json.dumps, _CHOICES))),
}


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[pytest.mark.slow] * (t != "classify")) for t in CASES]
)
def test_importance_is_the_slope_of_the_loss(task, folders, tmp_path):
    """Against central differences, example by example: a head that gives 1 +- h of what it does."""
    name, file, text = CASES[task]
    path = tmp_path / file
    path.write_text(text)
    config = EvaluateConfig(task=task, model="x", eval_file=str(path))
    examples = read_split(str(path), config, report=print)
    tokenizer = kbert.BertTokenizer.from_pretrained(folders / "full")
    task = make_task(
        types.SimpleNamespace(task=task, max_seq_length=24), tokenizer, LABELS["label_names"]
    )
    items = task.encode(examples).items
    model = model_of(name)
    found = head_importance(model, task, items, batch_size=1)
    together = head_importance(model, task, items, batch_size=3)  # with a copy that does not count
    for one, other in zip(found, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)

    padded = [pad_examples([item], item.length, 1, tokenizer.pad_id) for item in items]

    @tf.function(autograph=False)
    def losses():
        found = []
        for features in padded:
            values, _ = task.losses(model(features, training=False), features["labels"])
            weights = features["label_weights"]
            found.append(tf.reduce_sum(values * weights) / weights.sum())
        return tf.stack(found)

    slopes = np.zeros((3, 4, len(items)))
    for layer, block in enumerate(model.bert.encoder.blocks):
        kernel = block.attention.output_dense.kernel
        original = np.array(kernel)
        for head in range(4):
            for h in (1e-2, -1e-2):
                changed = original.copy()
                changed[head * K : (head + 1) * K] *= 1 + h
                kernel.assign(changed)
                slopes[layer, head] += np.array(losses()) / (2 * h)
        kernel.assign(original)
    expected = np.abs(slopes).mean(axis=-1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # float32 losses near 1, differences of 1e-2: some 1e-4 of the largest slope
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_the_least_important_heads():
    importance = [np.array([0.9, 0.1, 0.3]), np.array([0.05, 0.06, 0.07]), np.array([0.2])]
    assert least_important(importance, 0.3) == [[], [0, 1], []]
    assert least_important(importance, 0.4) == [[1], [0, 1], []]  # one stays in each layer
    assert least_important(importance, 0.6) == [[1, 2], [0, 1], []]
    for share, count in ((0.01, 0), (0.8, 6)):
        with pytest.raises(
            UserError,
            match=rf"prune_fraction must remove 1 to 4 of the 7 heads, as each of the 3 layers "
            rf"keeps at least one; got {share}, which removes {count}.",
        ):
            least_important(importance, share)


# The program


@pytest.fixture(scope="module")
def result(folders):
    """What `prune` returned and said, into the folder `half`."""
    lines = []
    config = PruneConfig(
        **{"model": str(folders / "full"), "data_file": str(folders / "data.tsv")},
        **{"eval_file": str(folders / "data.tsv"), "output_dir": str(folders / "half")},
    )
    return prune(config, lines.append), lines


def test_a_folder_without_half_of_the_heads(folders, result):
    result, lines = result
    assert json.loads((folders / "half/prune.json").read_text()) == result
    left = result["heads"]["after"]
    assert sum(left) == 6 and min(left) >= 1 and result["heads"]["before"] == [4, 4, 4]
    assert [4 - len(heads) for heads in result["removed"]] == left
    removed, stay = [], []
    for values, heads in zip(result["importance"], result["removed"], strict=True):
        assert np.linalg.norm(values) == pytest.approx(1)
        for head, value in enumerate(values):
            (removed if head in heads else stay).append(value)
    assert 1 in left or max(removed) <= min(stay)
    counts = result["parameters"]
    model = kbert.BertForSequenceClassification.from_pretrained(folders / "half")
    assert model.config.attention_heads_per_layer == tuple(left)
    assert counts["after"] == model.count_params()
    assert counts["before"] - counts["after"] == 6 * (4 * 20 * K + 3 * K)
    assert result["bytes"]["after"] == 4 * counts["after"]
    saved = sum(w.size for w in weights_of(folders / "half").values())
    assert saved == counts["after"]
    for when, folder in (("before", "full"), ("after", "half")):
        config = EvaluateConfig(model=str(folders / folder), eval_file=str(folders / "data.tsv"))
        assert result["scores"][when] == evaluate(config, lambda line: None)
    text = "\n".join(lines)
    assert "layer  heads  kept  removed" in text and "before       after" in text
    assert f"{counts['before']:,}" in text and "accuracy" in text
    # those heads, masked in the full model
    kept = [sorted(set(range(4)) - set(heads)) for heads in result["removed"]]
    features = features_of()
    np.testing.assert_allclose(
        model(features)["logits"],
        mask_heads(model_of(), kept)(features)["logits"],
        atol=TOLERANCE,
    )
    predictor = kbert.Predictor.from_pretrained(folders / "half")
    assert predictor.classify(["a good film"])[0]["label"] in LABELS["label_names"]


@pytest.mark.slow
def test_a_pruned_model_is_pruned_again(folders, result, tmp_path):
    files = {"data_file": str(folders / "data.tsv"), "output_dir": str(tmp_path / "x")}
    again = prune(
        PruneConfig(model=str(folders / "half"), prune_fraction=0.2, **files), lambda line: None
    )
    assert again["heads"]["before"] == result[0]["heads"]["after"]
    assert sum(again["heads"]["after"]) == 5 and "scores" not in again
    with pytest.raises(UserError, match=r"x exists and is not empty. Remove it, or choose another"):
        prune(PruneConfig(model=str(folders / "half"), **files))


def test_examples_to_score_are_read_before_anything_slow(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(head_pruning, "head_importance", None)
    (tmp_path / "dev.tsv").write_text("text\tlabel\na film\tneither\n")
    config = PruneConfig(
        **{"model": str(folders / "full"), "data_file": str(folders / "data.tsv")},
        **{"eval_file": str(tmp_path / "dev.tsv"), "output_dir": str(tmp_path / "x")},
    )
    with pytest.raises(UserError, match=r"dev.tsv, line 2: the label 'neither' is not one of"):
        prune(config, lambda line: None)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0, 0], [1], [1]], r"different heads of block 0, .* from 0 to 3; got \[0, 0\]"),
        ([[0], [1, 4], [1]], r"different heads of block 1, .* from 0 to 3; got \[1, 4\]"),
        ([[0], [1], [-1]], r"different heads of block 2, .* from 0 to 3; got \[-1\]"),
        ([[0], [], [1]], r"one or more different heads of block 1, .*; got \[\]"),
        ([[0], [1]], "heads_to_keep must list the heads of each of the 3 blocks; got 2 lists"),
    ],
)
def test_heads_that_cannot_be_kept(kept, message, folders):
    with (
        open_weights(folders / "full") as (config, weights),
        pytest.raises(UserError, match=message),
    ):
        remove_heads(config, weights, kept)


@pytest.mark.slow
def test_fine_tuning_goes_on_from_it_and_resumes(folders, result, tmp_path, monkeypatch, capsys):
    config = FinetuneConfig(
        **{"task": "classify", "init_from": str(folders / "half"), "epochs": 4.0},
        **{"train_file": str(folders / "data.tsv"), "eval_file": str(folders / "data.tsv")},
        **{"batch_size": 8, "learning_rate": 5e-3, "max_seq_length": 24, "save_every_steps": 7},
        **{"eval_every_steps": 20, "log_every_steps": 20},
    )
    results = finetune(config, tmp_path / "whole")
    assert results["eval"]["accuracy"] > result[0]["scores"]["after"]["accuracy"]
    left = result[0]["heads"]["after"]
    assert f"width 20, {sum(left)} of 12 heads, " in capsys.readouterr().out
    stop_at(monkeypatch, 9)
    finetune(config, tmp_path / "cut")
    monkeypatch.undo()
    assert not (tmp_path / "cut/finetuning/final").exists()
    assert finetune(config, tmp_path / "cut") == results
    whole, cut = (weights_of(tmp_path / name / "finetuning/final") for name in ("whole", "cut"))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, cut[name], err_msg=name)
    saved = kbert.BertModel.from_pretrained(tmp_path / "cut/finetuning/final")
    assert saved.config.attention_heads_per_layer == tuple(left)


def test_what_the_program_refuses(folders, tmp_path):
    """In one line, before it writes anything."""

    def run(*flags):
        command = [PYTHON, "-m", "kbert.prune", *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr

    for missing in ("model", "data_file", "output_dir"):
        with pytest.raises(UserError, match=rf"--{missing} is missing: "):
            PruneConfig(**{"model": "a", "data_file": "b", "output_dir": "c"} | {missing: None})
    model, data = f"--model={folders}/full", f"--data_file={folders}/data.tsv"
    error = run(model, data, f"--output_dir={tmp_path}/x", "--prune_fraction=0.99")
    assert error.startswith("error: prune_fraction must remove 1 to 9 of the 12 heads")
    assert not (tmp_path / "x").exists() and error.count("\n") == 1
