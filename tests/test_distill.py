"""Distillation: what a teacher says is learnt, by every task, to the same bits after a stop."""

import dataclasses
import json
import re
import shutil
import subprocess
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow
from run_files import stop_at, weights_of
from scipy import special
from warm_python import PYTHON

import kbert
from kbert.compression.distillation_objective import FIXED_SETTINGS, DistillationObjective
from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.folder import TASK_FILE
from kbert.model.weights import resolve_layers
from kbert.settings import DistillConfig, FinetuneConfig, PretrainConfig
from kbert.tasks.losses import soft_losses
from kbert.tasks.registry import get_task, make_task
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train import distill, finetune, pretrain
from kbert.train.cost_estimate import forward_flops, step_flops, teacher_memory
from kbert.utils.flags import as_flagfile

WORDS = [f"w{i}" for i in range(20)] + ["good", "bad", "who", "?"]
BERT = {
    **{"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2},
    **{"intermediate_size": 16, "max_position_embeddings": 24, "initializer_range": 0.2},
}


def save(folder, model_class=kbert.BertForPreTraining, task=None, seed=0, **changes):
    """A folder of a BERT that knows nothing, perhaps of one for a task."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vocab([*SPECIAL_TOKENS, *WORDS], folder / "vocab.txt")
    tokenizer = kbert.BertTokenizer(folder / "vocab.txt")
    keras.utils.set_random_seed(seed)
    model = model_class(BertConfig(vocab_size=tokenizer.vocab_size, **BERT | changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if task:
        metadata = {"task": task, "max_seq_length": 20, "takes_pairs": task == "pair"}
        (folder / TASK_FILE).write_text(json.dumps(metadata))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"))


def lines_of(rng, count, labels=None):
    for number in range(count):
        words = [*rng.choice(WORDS[:20], rng.integers(2, 9)), ("good", "bad")[number % 2]]
        label = ("pos", "neg")[number % 2] if labels is None else labels[number]
        yield f"{' '.join(rng.permutation(words))}\t{label}\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Opinions: "train", "eval", and "wrong", whose labels are drawn."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    drawn = rng.choice(["pos", "neg"], 96)
    for name, count, labels in (("train", 96, None), ("eval", 32, None), ("wrong", 96, drawn)):
        (folder / name).with_suffix(".tsv").write_text("".join(lines_of(rng, count, labels)))
    return {name: str(folder / f"{name}.tsv") for name in ("train", "eval", "wrong")}


COMMON = {
    "jit": "off",
    "epochs": 2.0,
    "batch_size": 16,
    "learning_rate": 5e-3,
    "log_every_steps": 4,
}


@pytest.fixture(scope="module")
def teacher(bert, files, made_once):
    """A fine-tuned model of 4 blocks that tells good from bad."""
    data = {
        "train_file": files["train"],
        "eval_file": files["eval"],
        "epochs": 6.0,
        "batch_size": 8,
    }
    config = FinetuneConfig(
        task="classify", init_from=str(bert), max_seq_length=20, **COMMON | data
    )
    folder = made_once("teacher", lambda folder: finetune(config, folder)) / "finetuning"
    assert json.loads((folder / "results.json").read_text())["eval"]["accuracy"] == 1
    return folder / "best"


@pytest.fixture
def settings(teacher, files):
    """Function from changes to the settings of a student of two blocks."""

    def of(**changes):
        data = {"train_file": files["train"], "eval_file": files["eval"]}
        own = {"task": "classify", "teacher": str(teacher), "max_seq_length": 20}
        return DistillConfig(**COMMON | data | own | changes)

    return of


# Blocks


def test_which_blocks():
    assert resolve_layers(3, 12) == (4, 8, 12) and resolve_layers(6, 12) == (2, 4, 6, 8, 10, 12)
    assert resolve_layers(1, 5) == (5,) and resolve_layers(5, 5) == (1, 2, 3, 4, 5)
    for N in range(1, 25):
        for M in range(1, N + 1):
            layers = resolve_layers(M, N)
            assert len(set(layers)) == M and layers[-1] == N and list(layers) == sorted(layers)
            assert np.abs(np.array(layers) - np.arange(1, M + 1) * N / M).max() <= 0.5
    assert resolve_layers([1, 3], 4) == (1, 3)


@pytest.mark.parametrize("layers", [0, 5, (), (0, 1), (2, 1), (1, 1), (4, 5)])
def test_blocks_that_there_are_not(layers):
    with pytest.raises(UserError, match=r"layers must be (1 to 4|block numbers from 1 to 4)"):
        resolve_layers(layers, 4)


def test_models_of_some_blocks(bert):
    """The first two compute what the whole model has after two; others are where they were."""
    whole = kbert.BertModel.from_pretrained(bert, output_hidden_states=True)
    first = kbert.BertModel.from_pretrained(bert, layers=(1, 2))
    ids = np.array([[5, 6, 7, 8]])
    np.testing.assert_array_equal(first(ids)["last_hidden_state"], whole(ids)["hidden_states"][2])
    half = kbert.BertForPreTraining.from_pretrained(bert, layers=2)
    theirs = kbert.BertForPreTraining.from_pretrained(bert).named_weights()
    assert half.config == dataclasses.replace(whole.config, num_hidden_layers=2)
    for name, weight in half.named_weights().items():
        name = name.replace("layer_1/", "layer_3/").replace("layer_0/", "layer_1/")
        np.testing.assert_array_equal(weight, theirs[name], err_msg=name)
    with pytest.raises(UserError, match="layers must be 1 to 4, the number of blocks; got 9"):
        kbert.BertModel.from_pretrained(bert, layers=9)


# Losses


def kl(theirs, ours):
    return special.rel_entr(theirs, ours).sum(axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_losses(temperature):
    ours, theirs = np.random.default_rng(0).normal(0, 3, (2, 5, 7)).astype(np.float32)
    soft = [special.softmax(x.astype(float) / temperature, axis=-1) for x in (theirs, ours)]
    found = soft_losses(ours, theirs, temperature)
    np.testing.assert_allclose(found, temperature**2 * kl(*soft), rtol=1e-4)
    np.testing.assert_allclose(soft_losses(ours, ours, temperature), np.zeros(5), atol=1e-6)
    # Its gradient: T (softmax(ours / T) - softmax(theirs / T)), section 2 of Hinton et al.
    logits = tf.constant(ours)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(soft_losses(logits, theirs, temperature))
    np.testing.assert_allclose(
        tape.gradient(loss, logits), temperature * (soft[1] - soft[0]), atol=1e-5
    )


def test_soft_losses_of_the_tasks(bert):
    tokenizer = kbert.BertTokenizer.from_pretrained(bert)
    rng, T = np.random.default_rng(0), 2.0

    def losses(task, names, **outputs):
        fields = dict.fromkeys(("doc_stride", "max_query_length", "max_answer_length"), 9)
        config = type("Config", (), fields | {"task": task, "max_seq_length": 20})
        config.null_threshold = None
        ours, theirs = ({n: x[i] for n, x in outputs.items()} for i in range(2))
        return make_task(config, tokenizer, names).soft_losses(ours, theirs, T)

    logits = rng.normal(0, 2, (2, 4, 3)).astype(np.float32)
    softened = special.softmax(logits / T, axis=-1)
    expected = T**2 * kl(softened[1], softened[0])
    for task in ("classify", "pair", "choice"):
        found = losses(task, ("a", "b", "c"), logits=logits)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    found = losses("tag", ("a", "b", "c"), logits=logits[:, None])
    np.testing.assert_allclose(found, expected[None], rtol=1e-4)
    found = losses("regress", None, logits=logits[..., :1])
    np.testing.assert_allclose(found, (logits[0, :, 0] - logits[1, :, 0]) ** 2, rtol=1e-5)
    found = losses("qa", None, start_logits=logits, end_logits=logits[:, ::-1])
    np.testing.assert_allclose(found, (expected + expected[::-1]) / 2, rtol=1e-4)
    there = special.expit(logits / T)
    both = np.stack([there, 1 - there], axis=-1)
    expected = T**2 * kl(both[1], both[0]).mean(axis=-1)
    found = losses("multilabel", ("a", "b", "c"), logits=logits)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


class Objective:
    names = ("loss", "count", "tokens")

    def count(self, features):
        return tf.constant(4.0)

    def sums(self, outputs, features):
        return {"loss": tf.constant(12.0), "count": 4.0, "tokens": tf.constant(9.0)}

    def loss(self, sums, count):
        return sums["loss"] / count

    def metrics(self, sums):
        return {"loss": sums["loss"] / sums["count"]}


def test_the_loss_of_a_student():
    """Against numpy: padding does not count, blocks 2 and 4 of the teacher are compared."""
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0]])

    def outputs(blocks):
        hidden = rng.normal(size=(blocks + 1, 3, 5, 6)).astype(np.float32)
        scores = np.where(mask[:, None, None], rng.normal(size=(blocks, 3, 2, 5, 5)), -1e9)
        attention = special.softmax(scores, axis=-1).astype(np.float32)
        return {"hidden_states": tuple(hidden), "attentions": tuple(attention)}

    ours, theirs = outputs(2), outputs(4)

    class Teacher:
        layers = (2, 4)

        def __call__(self, features):
            return theirs

    config = DistillConfig(
        **{"teacher": "x", "task": "tag", "train_file": "y", "soft_weight": 0.75},
        **{"hidden_weight": 0.5, "attention_weight": 2.0},
    )
    objective = DistillationObjective(
        Objective(), config, Teacher(), lambda *_: tf.constant(8.0), loss="loss", count="count"
    )
    features = {"attention_mask": mask}
    sums = objective.sums(ours, features)
    hidden = attention = 0.0
    for i, number in enumerate(Teacher.layers):
        difference = ours["hidden_states"][i + 1] - theirs["hidden_states"][number]
        hidden += (np.square(difference).mean(axis=-1) * mask).sum() / 2
        divergence = kl(theirs["attentions"][number - 1], ours["attentions"][i])
        attention += (divergence.mean(axis=1) * mask).sum() / 2
    np.testing.assert_allclose(sums["hidden_loss"], hidden, rtol=1e-5)
    np.testing.assert_allclose(sums["attention_loss"], attention, rtol=1e-4)
    expected = (0.25 * 12 + 0.75 * 8) / 4 + (0.5 * hidden + 2 * attention) / 9
    loss = objective.loss(sums, objective.count(features))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    found = objective.metrics({name: float(value) for name, value in sums.items()})
    assert found["loss"] == pytest.approx(expected, rel=1e-5) and found["label_loss"] == 3
    assert found["soft_loss"] == 2 and found["hidden_loss"] == pytest.approx(hidden / 9)


# Runs


def rows_of(run, part="distillation"):
    lines = (run / part / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("tokens_per_second", None)
        row.pop("input_wait", None)
    return rows


@pytest.mark.slow
def test_a_student_learns_what_no_label_says(settings, files, tmp_path, capsys):
    """The labels are drawn; the teacher knows better."""
    config = settings(train_file=files["wrong"], soft_weight=1.0, epochs=8.0)
    assert distill(config, tmp_path / "run")["eval"]["accuracy"] == 1
    printed = capsys.readouterr().out
    assert f"starting from blocks 2, 4 of the teacher, {config.teacher}" in printed
    assert f"teacher: {config.teacher}, 4 layers, width 24; distilled: prob" in printed
    model = kbert.BertForSequenceClassification.from_pretrained(tmp_path / "run/distillation/best")
    assert model.config.num_hidden_layers == 2 and model.config.label_names == ("neg", "pos")


@pytest.mark.slow
def test_a_copy_has_nothing_to_learn(settings, tmp_path):
    """Without dropout, all blocks of the teacher say what the teacher says."""
    config = settings(student_layers="4", hidden_weight=1.0, attention_weight=1.0, epochs=0.1)
    off = {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.0}

    model = kbert.BertForSequenceClassification.from_pretrained(config.teacher, **off)
    model.save_pretrained(tmp_path / "still")
    tokenizer = kbert.BertTokenizer.from_pretrained(config.teacher)
    tokenizer.save_pretrained(tmp_path / "still")
    changes = {"teacher": str(tmp_path / "still"), "init_from": str(tmp_path / "still")}
    distill(dataclasses.replace(config, **changes), tmp_path / "run")
    first = rows_of(tmp_path / "run")[0]
    for name in ("soft_loss", "hidden_loss", "attention_loss"):
        assert abs(first[name]) < 1e-5, (name, first)
    assert first["label_loss"] > 0


@pytest.mark.slow
def test_stopped_students_go_on_to_the_same_bits(settings, tmp_path, monkeypatch):
    config = settings(hidden_weight=1.0, attention_weight=0.5, save_every_steps=5)
    distill(config, tmp_path / "whole")
    stop_at(monkeypatch, 8)
    distill(config, tmp_path / "cut")
    monkeypatch.undo()
    assert len(rows_of(tmp_path / "cut")) < len(rows_of(tmp_path / "whole"))
    distill(config, tmp_path / "cut")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    whole, cut = (weights_of(tmp_path / name / "distillation/final") for name in ("whole", "cut"))
    for name, value in whole.items():
        np.testing.assert_array_equal(cut[name], value, err_msg=name)
    with pytest.raises(UserError, match=r"temperature is 9\.0 now, but .* was written with 2\.0"):
        distill(dataclasses.replace(config, temperature=9.0), tmp_path / "cut")


PLAIN = {"optimizer": "sgd", "learning_rate": 0.05, "hidden_weight": 1.0, "attention_weight": 1.0}


def assert_same_weights(runs):
    one, other = (weights_of(run / "distillation/final") for run in runs)
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, atol=1e-6, err_msg=key)


@pytest.mark.slow
def test_rows_that_fill_a_batch_up_do_not_count(settings, tmp_path):
    (tmp_path / "three.tsv").write_text("w1 good\tpos\nw2 w3 w4 w5 bad\tneg\nw6 good\tpos\n")
    found = []
    for batch_size in (3, 8):
        changes = {"train_file": str(tmp_path / "three.tsv"), "batch_size": batch_size}
        changes |= {"epochs": 1.0, "log_every_steps": 1, "hidden_weight": 1.0}
        distill(settings(**changes, attention_weight=1.0), tmp_path / str(batch_size))
        found.append(rows_of(tmp_path / str(batch_size))[0])
    for name in ("loss", "soft_loss", "hidden_loss", "attention_loss", "gradient_norm"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)


@pytest.mark.slow
def test_slices_make_no_difference(settings, tmp_path):
    """SGD, with dropout."""
    for slices in (1, 2):
        config = settings(**PLAIN, epochs=0.5, accumulation_steps=slices)
        distill(config, tmp_path / str(slices))
    assert_same_weights([tmp_path / "1", tmp_path / "2"])


@pytest.mark.slow
def test_replicas_make_no_difference(settings, tmp_path):
    """Two of them in a process of their own, which finds the task itself."""
    fixed = PLAIN | {"epochs": 1.0}
    distill(settings(**fixed), tmp_path / "one")
    (tmp_path / "x.flags").write_text(as_flagfile(settings(**fixed, cpu_devices=2), ""))
    text = (tmp_path / "x.flags").read_text()
    text = text.replace("--task=classify\n", "").replace("--max_seq_length=20\n", "")
    (tmp_path / "x.flags").write_text(text)
    command = [PYTHON, "-m", "kbert.distill", f"--flagfile={tmp_path}/x.flags"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/mirrored"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "devices: 2 CPUs, 8 examples each" in done.stdout
    assert_same_weights([tmp_path / "one", tmp_path / "mirrored"])


def question(number):
    answers = [{"text": "good", "answer_start": 3}]
    return {
        "context": f"w{number % 9} good w1",
        "qas": [{"id": f"q{number}", "question": "who ?", "answers": answers}],
    }


EXAMPLES = {
    "regress": ("tsv", lambda: "".join(f"w{i % 9} good\t{i / 9}\n" for i in range(16))),
    "multilabel": (
        "tsv",
        lambda: "".join(f"w{i % 9} good\t{('a', 'b,a')[i % 2]}\n" for i in range(16)),
    ),
    "tag": ("conll", lambda: "".join(f"w{i % 9} O\ngood B-X\n\n" for i in range(16))),
    "qa": ("json", lambda: json.dumps({"data": [{"paragraphs": [*map(question, range(16))]}]})),
    "choice": (
        "jsonl",
        lambda: "".join(
            json.dumps({"text": f"w{i % 9}", "choices": ["good", "bad w3"], "label": i % 2}) + "\n"
            for i in range(16)
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["tag", "qa", "regress", "multilabel", "choice"])
def test_every_task_can_be_taught(task, tmp_path):
    """A teacher that knows nothing: the student, which starts anew, comes closer to it."""
    suffix, text = EXAMPLES[task]
    (tmp_path / f"train.{suffix}").write_text(text())
    names = {"multilabel": ("a", "b"), "tag": ("B-X", "O")}.get(task)
    fields = {"num_labels": len(names), "label_names": names} if names else {}
    fields |= {"num_labels": 1} if task == "regress" else {}
    teacher = save(tmp_path / "teacher", get_task(task).model_class, task, **fields)
    student = save(tmp_path / "student", seed=1, num_hidden_layers=2)
    config = DistillConfig(
        **{"task": task, "teacher": str(teacher), "init_from": str(student)},
        **{"train_file": str(tmp_path / f"train.{suffix}"), "max_seq_length": 20, "doc_stride": 4},
        **{"soft_weight": 1.0, "hidden_weight": 0.1, "attention_weight": 0.1},
        **{"epochs": 6.0, "batch_size": 8, "learning_rate": 1e-2, "log_every_steps": 2},
    )
    distill(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["soft_loss"] < 0.9 * rows[0]["soft_loss"]
    assert rows[-1]["hidden_loss"] < rows[0]["hidden_loss"]


@pytest.fixture
def pretraining(bert, tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS[:20], 6)) + "\n" + "\n" * (i % 4 == 3) for i in range(80)]
    (tmp_path / "text.txt").write_text("".join(lines))
    return {
        **{"input": str(tmp_path / "text.txt"), "teacher": str(bert), "student_layers": "1,4"},
        **{"max_seq_length": 16, "global_batch_size": 8, "train_steps": 12, "warmup_steps": 2},
        **{"learning_rate": 2e-3, "log_every_steps": 4, "save_every_steps": 4},
        **{"soft_weight": 1.0, "hidden_weight": 1.0, "attention_weight": 1.0},
    }


@pytest.mark.slow
def test_general_distillation(pretraining, tmp_path, capsys):
    """In pretraining; a run that was stopped goes on to the same bits."""
    config = PretrainConfig(**pretraining)
    pretrain(config, tmp_path / "whole")
    assert "starting from blocks 1, 4 of the teacher" in capsys.readouterr().out
    rows = rows_of(tmp_path / "whole", "pretrain")
    for name in ("soft_loss", "hidden_loss", "attention_loss"):
        assert rows[-1][name] < rows[0][name]
    final = tmp_path / "whole/pretrain/final"
    assert BertConfig.from_file(final / "config.json").num_hidden_layers == 2

    saved = tmp_path / "whole/pretrain/checkpoint/step_00000008"
    (tmp_path / "cut/pretrain/checkpoint").mkdir(parents=True)
    saved.rename(tmp_path / "cut/pretrain/checkpoint/step_00000008")
    pretrain(config, tmp_path / "cut")
    for name, value in weights_of(final).items():
        other = weights_of(tmp_path / "cut/pretrain/final")[name]
        np.testing.assert_array_equal(other, value, err_msg=name)
    with pytest.raises(UserError, match=r"hidden_weight is 0\.5 now, but .* was written with 1\.0"):
        pretrain(dataclasses.replace(config, hidden_weight=0.5), tmp_path / "cut")


@pytest.mark.slow
def test_no_teacher_comes_into_a_run(pretraining, bert, tmp_path):
    alone = {k: v for k, v in pretraining.items() if k not in {"teacher", *FIXED_SETTINGS}}
    settings = alone | {"init_from": str(bert), "train_steps": 1, "warmup_steps": 0}
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"step_\d+ was written without a teacher\. Resume the run in"
    ):
        pretrain(PretrainConfig(**settings, teacher=str(bert)), tmp_path / "run")


@pytest.mark.slow
def test_a_student_without_next_sentence_prediction(pretraining, tmp_path):
    """Of packed rows, too, the teacher's attention and hidden states are compared."""
    changes = {"next_sentence": False, "packing": True}
    pretrain(PretrainConfig(**pretraining | changes), tmp_path / "run")
    rows = rows_of(tmp_path / "run", "pretrain")
    for name in ("soft_loss", "hidden_loss", "attention_loss"):
        assert rows[-1][name] < rows[0][name]


@pytest.mark.slow
def test_a_student_of_another_size_learns_words(pretraining, tmp_path):
    (tmp_path / "small.yaml").write_text(
        "hidden_size: 8\nnum_hidden_layers: 1\nnum_attention_heads: 2\nintermediate_size: 8\n"
        "max_position_embeddings: 24\n"
    )
    changes = {"hidden_weight": 0, "student_layers": None, "learning_rate": 2e-2}
    config = PretrainConfig(**pretraining | changes | {"bert_config": str(tmp_path / "small.yaml")})
    pretrain(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run", "pretrain")
    assert rows[-1]["soft_loss"] < rows[0]["soft_loss"]
    assert "attention_loss" in rows[0] and "hidden_loss" not in rows[0]  # which has no weight
    # It was compared without dropout of attention, and has it again from here on.
    final = BertConfig.from_file(tmp_path / "run/pretrain/final/config.json")
    assert final.attention_probs_dropout_prob == 0.1
    pretrain(config, tmp_path / "run")  # complete: the architecture is still that of the file
    assert rows_of(tmp_path / "run", "pretrain") == rows


@pytest.mark.slow
def test_a_dry_run_counts_the_teacher(pretraining, bert, tmp_path, capsys):
    """Its forward pass, its weights, and the attention that is compared (float32)."""
    config = PretrainConfig(**pretraining)
    pretrain(config, tmp_path / "run", dry_run=True)
    found = float(re.search(r"compute: (\S+) floating-point", capsys.readouterr().out)[1])
    B, L, M = config.global_batch_size, config.max_seq_length, 3
    theirs = BertConfig.from_file(bert / "config.json")
    ours = dataclasses.replace(theirs, num_hidden_layers=2)
    wanted = step_flops(ours, B, L, M) + B * sum(forward_flops(theirs, L, M))
    assert found == pytest.approx(wanted, rel=0.01)
    kept = 4 * 2 * L * L + 4 * L * theirs.hidden_size  # attention, hidden states
    teacher = types.SimpleNamespace(config=theirs, parameters=7)
    assert teacher_memory(teacher, B, L, config) == 4 * 7 + B * 4 * kept


# Bad input


def test_settings_that_contradict_each_other():
    good = {"teacher": "x", "task": "tag", "train_file": "y"}
    with pytest.raises(UserError, match=r"--teacher is missing: fine-tuned model to learn from"):
        DistillConfig(**good | {"teacher": None})
    with pytest.raises(UserError, match=r"student_layers must be a count of blocks, .* got '3,x'"):
        DistillConfig(**good, student_layers="3,x")
    with pytest.raises(
        UserError, match="--attention_weight needs attention weights, which --remat does not"
    ):
        DistillConfig(**good, attention_weight=1.0, remat=True)
    with pytest.raises(UserError, match="--student_layers requires --teacher"):
        PretrainConfig(input="x", student_layers="3")
    with pytest.raises(UserError, match=r"soft_weight must be >= 0 and <= 1; got 2"):
        DistillConfig(**good, soft_weight=2)
    with pytest.raises(UserError, match="--temperature has no effect with --soft_weight=0"):
        DistillConfig(**good, soft_weight=0, temperature=4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student_layers": "9"},
            "student_layers must be 1 to 4, the number of blocks; got 9",
        ),
        ({"student_layers": "2,7"}, "student_layers must be block numbers from 1 to 4, increasing"),
        ({"max_seq_length": 25}, "max_seq_length must be at most 24, the max_position_embeddings"),
        ({"label_names": "pos,neg"}, r"has label_names \('neg', 'pos'\); the student would have"),
    ],
)
def test_students_that_cannot_be_taught(settings, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        distill(settings(**changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("student", "changes", "message"),
    [
        (
            {"hidden_size": 8},
            {"hidden_weight": 1.0},
            "must have the teacher's width, 24; got 8",
        ),
        (
            {"num_attention_heads": 3},
            {"attention_weight": 1.0},
            "must have the teacher's heads, 2, 2, 2, 2; got 3, 3, 3, 3. Set",
        ),
        (
            {"num_hidden_layers": 5},
            {"hidden_weight": 1.0},
            "the student has 5 blocks, but its teacher, .*, has 4: they cannot be compared",
        ),
        ({"type_vocab_size": 3}, {}, "student has type_vocab_size 3, but its teacher, .*, has 2"),
        ({}, {"student_layers": "2"}, "student_layers has no effect on a student that neither"),
        (
            {"num_hidden_layers": 3},
            {"hidden_weight": 1.0, "student_layers": "2,4"},
            "must select as many blocks of the teacher as the student has, 3; got 2,4",
        ),
    ],
)
def test_students_of_another_size(settings, student, changes, message, tmp_path):
    folder = save(tmp_path / "student", **student)
    with pytest.raises(UserError, match=message):
        distill(settings(init_from=str(folder), **changes), tmp_path / "run")


def test_students_with_other_words(settings, bert, tmp_path):
    other = save(tmp_path / "student")
    write_vocab([*SPECIAL_TOKENS, *WORDS[::-1]], other / "vocab.txt")
    with pytest.raises(UserError, match="vocabulary or casing differs from its teacher's"):
        distill(settings(init_from=str(other)), tmp_path / "run")


def test_teachers_that_know_nothing_of_the_task(settings, pretraining, bert, tmp_path):
    with pytest.raises(UserError, match=r"lacks the task head sequence_classifier\. Use a"):
        distill(settings(teacher=str(bert)), tmp_path / "run")
    bare = save(tmp_path / "bare", kbert.BertModel)
    with pytest.raises(UserError, match=r"lacks the task head mlm\. Use a teacher"):
        pretrain(PretrainConfig(**pretraining | {"teacher": str(bare)}), tmp_path / "other")


def test_a_student_with_a_larger_table(pretraining, tmp_path):
    (tmp_path / "large.yaml").write_text(
        "vocab_size: 64\nhidden_size: 24\nnum_attention_heads: 2\nnum_hidden_layers: 1\n"
    )
    changes = {"bert_config": str(tmp_path / "large.yaml"), "student_layers": None}
    changes |= {"hidden_weight": 0, "attention_weight": 0}
    with pytest.raises(UserError, match="the student's vocab_size must equal its teacher's, 29"):
        pretrain(PretrainConfig(**pretraining | changes), tmp_path / "run")
    assert not (tmp_path / "run/data/train").exists()  # refused before text is prepared


@pytest.mark.parametrize(
    ("task", "fields"), slow(("classify", {"num_labels": 2}), ("regress", {"num_labels": 1}))
)
def test_teachers_that_do_not_say_what_their_labels_are(task, fields, tmp_path, capsys):
    """As those of HF that were saved with its usual names; their head is taken along."""
    suffix, text = EXAMPLES[task] if task == "regress" else ("tsv", lambda: "a\t0\nb\t1\n" * 8)
    (tmp_path / f"train.{suffix}").write_text(text())
    teacher = save(tmp_path / "teacher", get_task(task).model_class, task, **fields)
    files = {"train_file": str(tmp_path / f"train.{suffix}"), "max_seq_length": 20}
    steps = {"epochs": 0.1, "batch_size": 8, "learning_rate": 1e-30, "warmup_ratio": 0.0}
    distill(DistillConfig(task=task, teacher=str(teacher), **files, **steps), tmp_path / "run")
    assert "has other labels; it is not used" not in capsys.readouterr().out
    name = "sequence_classifier/dense/kernel"
    theirs = get_task(task).model_class.from_pretrained(teacher).named_weights()[name]
    ours = weights_of(tmp_path / "run/distillation/final")[name]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_teacher_that_has_moved(settings, teacher, tmp_path):
    """It is known by its weights."""
    config = settings(epochs=0.5, save_every_steps=2)
    distill(config, tmp_path / "run")
    before = weights_of(tmp_path / "run/distillation/final")
    shutil.rmtree(tmp_path / "run/distillation/checkpoint/step_00000003")
    shutil.copytree(teacher, tmp_path / "there")
    distill(dataclasses.replace(config, teacher=str(tmp_path / "there")), tmp_path / "run")
    for name, value in weights_of(tmp_path / "run/distillation/final").items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.slow
def test_a_teacher_that_has_changed(settings, teacher, tmp_path):
    model = kbert.BertForSequenceClassification.from_pretrained(teacher)
    folder = tmp_path / "teacher"
    model.save_pretrained(folder)
    kbert.BertTokenizer.from_pretrained(teacher).save_pretrained(folder)
    config = settings(teacher=str(folder), epochs=0.3)
    distill(config, tmp_path / "run")
    model.named_weights()["sequence_classifier/dense/bias"].assign([1.0, 2.0])
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="have changed since the run started"):
        distill(dataclasses.replace(config, epochs=0.5), tmp_path / "run")


@pytest.mark.slow
def test_keras_own_distiller(teacher):
    """kbert's models are Keras models: `keras.distillation` trains them, too."""
    whole = kbert.BertForSequenceClassification.from_pretrained(teacher)
    half = kbert.BertForSequenceClassification.from_pretrained(teacher, layers=2)
    losses = keras.distillation.LogitsDistillation(temperature=2.0)
    distiller = keras.distillation.Distiller(
        Logits(whole), Logits(half), distillation_losses=losses, student_loss_weight=0.0
    )
    distiller.compile(optimizer=keras.optimizers.Adam(3e-3), loss="mse")
    ids = np.random.default_rng(0).integers(5, 25, (64, 8)).astype(np.int32)
    fitted = distiller.fit(ids, np.zeros((64, 2)), batch_size=16, epochs=4, verbose=0)
    assert fitted.history["loss"][-1] < 0.7 * fitted.history["loss"][0]


class Logits(keras.Model):
    """The logits alone of a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, ids, training=None):
        return self.model({"input_ids": ids}, training=training)["logits"]
