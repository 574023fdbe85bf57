"""Whole fine-tuning runs: every task learns, runs resume to the bit, bad input is one line."""

import dataclasses
import json
import pathlib
import subprocess

import h5py
import keras
import numpy as np
import pytest
from killed_runs import train_and_kill
from run_files import stop_at, weights_of
from warm_python import PYTHON
from worker_runs import launch

import kbert
from kbert.data.examples import TextExample
from kbert.errors import UserError
from kbert.inference.evaluation import evaluate
from kbert.settings import EvaluateConfig, FinetuneConfig
from kbert.tasks.classify import Classification
from kbert.tasks.registry import get_task, with_task_defaults
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train import Callback, finetune
from kbert.train.finetuning import Finetuning
from kbert.train.finetuning_data import class_weights
from kbert.utils.flags import as_flagfile

WORDS = ["good", "bad", "so", "the", "a", "film", "cast", "plot", "was", "is", "who", "?", "."]
NAMES = ["ann", "bob", "cid", "rome", "oslo", "lima"]
BERT = {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 32, "max_position_embeddings": 32},
}
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folder of a BERT that knows nothing."""
    folder = tmp_path_factory.mktemp("bert")
    write_vocab([*SPECIAL_TOKENS, *WORDS, *NAMES], folder / "vocab.txt")
    tokenizer = kbert.BertTokenizer(folder / "vocab.txt")
    keras.utils.set_random_seed(0)
    config = kbert.BertConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.2, **BERT)
    kbert.BertForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def filler(count):
    return " ".join(rng.choice(WORDS[3:10], count))


def opinion(label):
    word = {"neg": "bad", "pos": "good", "so": "so"}[label]
    return f"{filler(rng.integers(1, 6))} {word} {filler(rng.integers(1, 6))}"


def lines_of(task, count):
    """Lines of a file of examples that a small model can learn."""
    for number in range(count):
        label = ("neg", "pos", "so")[number % 3]
        if task == "classify":
            yield f"{opinion(label)}\t{label}"
        elif task == "regress":
            yield f"{opinion(label)}\t{ {'neg': -1, 'pos': 1.5, 'so': 0.5}[label] }"
        elif task == "multilabel":
            names = [name for name in NAMES[:2] if rng.random() < 0.5]
            yield f"{filler(3)} {' '.join(names)} {filler(2)}\t{','.join(names)}"
        elif task == "pair":
            other = ("neg", "pos", "so")[rng.integers(3)]
            yield f"{opinion(label)}\t{opinion(other)}\t{'same' if label == other else 'other'}"
        elif task == "tag":
            kinds = {**dict.fromkeys(NAMES[:3], "B-PER"), **dict.fromkeys(NAMES[3:], "B-LOC")}
            words = [*rng.choice(WORDS, 3), rng.choice(NAMES), *rng.choice(WORDS, 2)]
            yield "".join(f"{word}\t{kinds.get(word, 'O')}\n" for word in words)
        elif task == "choice":
            choices = ["good film", "bad film"][:: 1 if number % 2 else -1]
            example = {"text": filler(2), "choices": choices, "label": choices.index("good film")}
            yield json.dumps(example)


def questions(count):
    """SQuAD: who ? is the name in the text."""
    paragraphs = []
    for number in range(count):
        before, name = filler(rng.integers(1, 5)), str(rng.choice(NAMES))
        answers = [{"text": name, "answer_start": len(before) + 1}]
        question = {"id": f"q{number}", "question": "who ?", "answers": answers}
        paragraphs.append({"context": f"{before} {name} {filler(3)}", "qas": [question]})
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


SUFFIXES = {"tag": "conll", "choice": "jsonl", "qa": "json"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(task, name) -> path of a file of examples: train 96, eval 24, test 25."""
    folder = tmp_path_factory.mktemp("data")
    found = {}
    for task in ("classify", "regress", "multilabel", "pair", "tag", "choice", "qa"):
        for name, count in (("train", 96), ("eval", 24), ("test", 25)):
            path = folder / f"{task}_{name}.{SUFFIXES.get(task, 'tsv')}"
            text = questions(count) if task == "qa" else "\n".join(lines_of(task, count)) + "\n"
            path.write_text(text)
            found[task, name] = path
    return found


@pytest.fixture
def settings(pretrained, files):
    """Function from a task to the settings of a run of seconds."""

    def of(task="classify", **changes):
        return FinetuneConfig(
            **{
                "task": task,
                "init_from": str(pretrained),
                "train_file": str(files[task, "train"]),
                "eval_file": str(files[task, "eval"]),
                "test_file": str(files[task, "test"]),
                "epochs": 3.0,
                "batch_size": 8,
                "learning_rate": 5e-3,
                "max_seq_length": 24,
                "doc_stride": 8,
                "log_every_steps": 5,
                "save_every_steps": 7,
            }
            | changes
        )

    return of


LEARNT = {
    **{"classify": ("accuracy", 0.95), "regress": ("spearman", 0.85), "pair": ("accuracy", 0.5)},
    **{"multilabel": ("f1_micro", 0.85), "tag": ("entity_f1", 0.95), "choice": ("accuracy", 0.95)},
    "qa": ("f1", 80),
}


ALIKE = ("classify", "regress", "multilabel", "pair", "choice")


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[pytest.mark.slow] * (t in ALIKE)) for t in LEARNT]
)
def test_every_task_learns(task, settings, tmp_path):
    results = finetune(settings(task, epochs=8.0 if task == "qa" else 5.0), tmp_path / "run")
    folder = tmp_path / "run/finetuning"
    assert json.loads((folder / "results.json").read_text()) == results
    metric, least = LEARNT[task]
    assert results["test"][metric] >= least, results["test"]
    assert results["eval"].keys() == results["test"].keys()
    rows = (folder / "test_predictions.jsonl").read_text().splitlines()
    assert len(rows) == 25 and all("where" in json.loads(row) for row in rows)
    assert (folder / "test_report.txt").exists() == (task in ("classify", "pair", "tag"))
    assert (folder / "eval_confusion.png").exists() == (task in ("classify", "pair"))
    for name in ("best", "final"):
        model = get_task(task).model_class.from_pretrained(folder / name)
        assert json.loads((folder / name / "task.json").read_text())["task"] == task
    names = {"classify": ("neg", "pos", "so"), "pair": ("other", "same")}
    names |= {"multilabel": ("ann", "bob"), "tag": ("B-LOC", "B-PER", "O")}
    assert model.config.label_names == names.get(task)


def assert_same_run(first, second):
    a, b = (json.loads((f / "finetuning/results.json").read_text()) for f in (first, second))
    assert a == b
    rows = [(f / "finetuning/metrics.jsonl").read_text().splitlines() for f in (first, second)]
    for row, other in zip(*rows, strict=True):
        row, other = json.loads(row), json.loads(other)
        for values in (row, other):
            values.pop("tokens_per_second", None)
            values.pop("input_wait", None)
        assert row == other
    for name in ("best", "final"):
        a, b = (weights_of(f / "finetuning" / name) for f in (first, second))
        assert a.keys() == b.keys() and len(a) > 20
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_bits(settings, tmp_path):
    """Dropout on; killed between evaluations, after early stopping was under way."""
    config = settings(early_stopping_patience=9, eval_every_steps=6)
    finetune(config, tmp_path / "whole")
    train_and_kill(dataclasses.asdict(config), tmp_path / "cut", step=20)
    assert (tmp_path / "cut/finetuning/checkpoint/step_00000014").exists()
    finetune(config, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_stopped_run_with_adapters_goes_on(settings, tmp_path, monkeypatch):
    config = settings(lora_rank=2, learning_rate=2e-2, epochs=2.0)
    finetune(config, tmp_path / "whole")
    stop_at(monkeypatch, 10)
    finetune(config, tmp_path / "cut")
    assert not (tmp_path / "cut/finetuning/results.json").exists()
    monkeypatch.undo()
    finetune(config, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_complete_run_says_the_same_again(settings, tmp_path, capsys):
    config = settings(epochs=1.0)
    results = finetune(config, tmp_path / "run")
    weights = weights_of(tmp_path / "run/finetuning/final")
    assert finetune(config, tmp_path / "run") == results
    for name, value in weights_of(tmp_path / "run/finetuning/final").items():
        np.testing.assert_array_equal(weights[name], value)
    assert "this run is complete: step 12 of 12" in capsys.readouterr().out


@pytest.mark.slow
def test_slices_and_replicas_make_no_difference(settings, tmp_path):
    """SGD, with dropout: one device, two slices, two replicas (in a process of its own)."""
    fixed = {"optimizer": "sgd", "learning_rate": 0.1, "classifier_dropout": 0.2, "epochs": 1.0}
    runs = {}
    for name, changes in {"one": {}, "slices": {"accumulation_steps": 2}}.items():
        finetune(settings(**fixed, **changes), tmp_path / name)
    mirrored = settings(cpu_devices=2, **fixed)
    (tmp_path / "x.flags").write_text(as_flagfile(mirrored, ""))
    command = [PYTHON, "-m", "kbert.finetune", f"--flagfile={tmp_path}/x.flags"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/mirrored"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "devices: 2 CPUs, 4 examples each" in done.stdout
    for name in ("one", "slices", "mirrored"):
        runs[name] = weights_of(tmp_path / name / "finetuning/final")
    for name in ("slices", "mirrored"):
        for key, value in runs["one"].items():
            np.testing.assert_allclose(runs[name][key], value, atol=1e-6, err_msg=f"{name} {key}")


@pytest.mark.slow
def test_workers_make_no_difference(settings, tmp_path):
    """The chief evaluates, and the others end with it when there is nothing better any more."""
    config = settings(optimizer="sgd", learning_rate=1e-4, epochs=9.0, early_stopping_patience=2)
    finetune(config, tmp_path / "one")
    changes = {"distribution": "multi_worker"}
    for status, _, errors in launch(2, tmp_path / "two", dataclasses.asdict(config) | changes):
        assert status == 0, errors
    one, two = (weights_of(tmp_path / name / "finetuning/final") for name in ("one", "two"))
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, atol=1e-6, err_msg=key)
    scores = [(tmp_path / name / "finetuning/results.json").read_text() for name in ("one", "two")]
    assert json.loads(scores[0])["test"]["accuracy"] == json.loads(scores[1])["test"]["accuracy"]


@pytest.mark.slow
@pytest.mark.smoke
def test_early_stopping(settings, tmp_path, monkeypatch, capsys):
    values = iter([0.5, 0.7, 0.6, 0.7, 0.9])

    def evaluation(self):
        value = next(values)
        return {"eval_accuracy": value}, value

    class Watch(Callback):
        better = []

        def on_evaluate(self, metrics, better):
            self.better.append(better)

    monkeypatch.setattr(Finetuning, "evaluation", evaluation)
    config = settings(early_stopping_patience=2, epochs=9.0)
    finetune(config, tmp_path / "run", callbacks=[Watch()])
    assert next(values) == 0.9  # two evaluations after the best one were the last
    assert Watch.better == [True, True, False, False]
    out = capsys.readouterr().out
    assert "eval at step 24 | accuracy 0.7000 | best so far" in out
    assert "step 45/108" in out and "step 50" not in out and "done: weights" in out


def test_the_best_weights_are_those_of_the_best_evaluation(settings, tmp_path):
    config = settings(learning_rate=0.05, epochs=4.0, best_metric="f1_macro")
    results = finetune(config, tmp_path / "run")
    rows = (tmp_path / "run/finetuning/metrics.jsonl").read_text().splitlines()
    found = [row["eval_f1_macro"] for row in map(json.loads, rows) if "eval_f1_macro" in row]
    assert len(found) == 4 and results["eval"]["f1_macro"] == max(found)


@pytest.mark.slow
def test_frozen_parts_stay_as_they_are(settings, tmp_path, pretrained):
    finetune(settings(freeze_layers=1, epochs=1.0), tmp_path / "run")
    before = kbert.BertModel.from_pretrained(pretrained).named_weights()
    after = weights_of(tmp_path / "run/finetuning/final")
    same = {n for n, w in before.items() if np.array_equal(w, after[n])}
    frozen = {n for n in before if "/embeddings/" in n or "/layer_0/" in n}
    assert same == frozen and len(frozen) == 5 + 16


def test_class_weights(pretrained):
    """Balanced, each class counts the same in sum."""
    labels = ["neg"] * 5 + ["pos"] * 2 + ["so"] * 9
    examples = [TextExample("", "the", None, label) for label in labels]

    tokenizer = kbert.BertTokenizer.from_pretrained(pretrained)
    task = Classification(tokenizer, ("neg", "pos", "so"))

    weights = class_weights("balanced", task, examples)
    assert weights == pytest.approx([16 / 15, 16 / 6, 16 / 27])
    items = task.encode(examples, weights).items
    assert sum(item.label_weights for item in items) == pytest.approx(16)
    assert float(items[5].label_weights) == pytest.approx(16 / 6)
    assert class_weights("1,2,0.5", task, examples).tolist() == [1, 2, 0.5]
    assert class_weights(None, task, examples) is None


@pytest.mark.parametrize("text", ["1,2", "1,2,x", "1,2,0", "some"])
def test_bad_class_weights(settings, tmp_path, text):
    with pytest.raises(UserError, match=r"a number > 0 for each of the 3 labels neg, pos, so"):
        finetune(settings(class_weights=text), tmp_path / "run")


@pytest.mark.slow
def test_a_head_for_the_same_labels_is_taken_along(settings, tmp_path, capsys):
    finetune(settings(epochs=5.0), tmp_path / "one")
    best = str(tmp_path / "one/finetuning/best")
    capsys.readouterr()
    again = finetune(settings(init_from=best, epochs=0.1, learning_rate=1e-9), tmp_path / "two")
    assert again["test"]["accuracy"] > 0.9
    assert "sequence_classifier" not in capsys.readouterr().out
    other = settings("pair", init_from=best, epochs=0.1)
    finetune(other, tmp_path / "three")
    assert (
        f"note: the task head of {best} has other labels; it is not used" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_test_file_alone(settings, tmp_path, capsys):
    results = finetune(settings(eval_file=None, epochs=1.0), tmp_path / "run")
    assert list(results) == ["test"]
    assert not (tmp_path / "run/finetuning/best").exists()
    printed = capsys.readouterr().out
    assert "no --eval_file or --eval_fraction: the weights of the last step are used" in printed


@pytest.mark.slow
def test_labels_by_number_with_names(settings, tmp_path):
    path, names = tmp_path / "numbers.tsv", tmp_path / "names.txt"
    numbers = {"neg": "0", "pos": "1", "so": "2"}
    rows = [line.rsplit("\t", 1) for line in lines_of("classify", 30)]
    path.write_text("".join(f"{text}\t{numbers[label]}\n" for text, label in rows))
    names.write_text("bad\ngood\nso\n")
    files = {"train_file": str(path), "eval_file": str(path), "test_file": None}
    finetune(settings(label_names=str(names), **files, epochs=1.0), tmp_path / "run")
    model = kbert.BertForSequenceClassification.from_pretrained(tmp_path / "run/finetuning/final")
    assert model.config.label_names == ("bad", "good", "so")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"best_metric": "acuracy"},
            r"best_metric must be one of accuracy, f1_weighted, .*acuracy",
        ),
        (
            {"max_seq_length": 33},
            r"max_seq_length must be at most 32, the max_position_embeddings of .*; got 33",
        ),
        ({"label_names": "neg,pos,so,odd"}, r"has no example with the label odd, so the model"),
        (
            {"label_names": "neg,pos"},
            r"classify_train.tsv, line 3: the label 'so' is not one of the 2",
        ),
        ({"freeze_layers": 3}, r"layers to freeze must be 0 to 2, the number of blocks; got 3"),
        ({"init_from": "/nowhere"}, r"/nowhere"),
        (
            {"batch_size": 9, "accumulation_steps": 2},
            r"divisible by the number of devices times accum",
        ),
    ],
)
def test_bad_settings_end_before_the_first_step(settings, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        finetune(settings(**changes), tmp_path / "run")
    assert not (tmp_path / "run/finetuning/checkpoint").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, r"--task is missing: classify \(one label for a text\), pair"),
        ({"init_from": None}, r"--init_from is missing"),
        ({"train_file": None}, r"--train_file is missing"),
        (
            {"eval_file": None, "early_stopping_patience": 2},
            r"--early_stopping_patience requires --eval_file or --eval_fraction",
        ),
        ({"lora_rank": 2, "freeze_layers": 1}, r"--lora_rank already freezes the encoder"),
        ({"task": "tag", "class_weights": "balanced"}, r"--class_weights is for classify and pair"),
        ({"epochs": 0.0}, r"epochs must be > 0; got 0.0"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    given = {"task": "classify", "init_from": "a", "train_file": "b", "eval_file": "c"}
    with pytest.raises(UserError, match=message):
        with_task_defaults(FinetuneConfig(**given | changes))


def test_labels_that_training_lacks(settings, tmp_path, files):
    path = tmp_path / "dev.tsv"
    path.write_text("the film was so\tso\nthe cast\todd\n")
    with pytest.raises(UserError) as caught:
        finetune(settings(eval_file=str(path)), tmp_path / "run")
    assert str(caught.value) == (
        "dev.tsv, line 2: the label 'odd' is not one of the 3 labels: neg, pos, so. 1 of 2 "
        "examples have unknown labels: odd (1). Fix them, or skip such examples with "
        "--skip_bad_lines, or count them as wrong with --unknown_labels=wrong."
    )
    assert not (tmp_path / "run/finetuning").exists()
    path.write_text("the film was so\tso\n")
    with pytest.raises(
        UserError, match=r"needs at least 2 different labels; .* has so\. Check --label_c"
    ):
        finetune(settings(train_file=str(path)), tmp_path / "run")


@pytest.mark.slow
def test_bad_lines_are_counted(settings, tmp_path, capsys, files):
    path = tmp_path / "bad.tsv"
    path.write_text(files["classify", "train"].read_text() + "\tneg\nthe film\n")
    finetune(settings(train_file=str(path), skip_bad_lines=True, epochs=0.1), tmp_path / "run")
    assert "note: 2 of 98 examples of bad.tsv are skipped; the first: bad.tsv, line 97: the" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_another_seed_is_another_run(settings, tmp_path):
    finetune(settings(epochs=0.5), tmp_path / "run")
    with pytest.raises(UserError, match=r"seed is 1 now, but .*step_0000.* was written with 0"):
        finetune(settings(epochs=0.5, seed=1), tmp_path / "run")


def test_the_program(settings, tmp_path):
    """Flags in, results out; what it prints is what a person wants to see."""
    (tmp_path / "x.flags").write_text(as_flagfile(settings(epochs=1.0), ""))
    command = [PYTHON, "-m", "kbert.finetune", f"--flagfile={tmp_path}/x.flags"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/run"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert "task: classify, 96 train, 24 eval, 25 test examples; an epoch has 12 steps" in lines
    assert "train labels: neg 32 (33.3%), pos 32 (33.3%), so 32 (33.3%)" in lines
    assert any(line.startswith("step 5/12 | epoch 0.42 | loss ") for line in lines)
    assert f"scores: {tmp_path}/run/finetuning/results.json; reports and predictions beside it" in (
        lines
    )
    replay = (tmp_path / "run/finetuning/run.flags").read_text()
    assert f"--flagfile={tmp_path}/run/finetuning/run.flags" in replay.replace("'", "")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"lora_rank": 2, "learning_rate": 3e-2}, {}])
def test_results_are_those_of_what_is_left(settings, tmp_path, files, changes):
    """The scores of a run, of its best folder, and of its last checkpoint if that is the best."""
    config = settings(remat=bool(changes), **changes)
    results = finetune(config, tmp_path / "run")
    folder = tmp_path / "run/finetuning"
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(row["eval_accuracy"] for row in rows if "eval_accuracy" in row)
    assert results["eval"]["accuracy"] == best > 0.4
    for name in ("eval", "test"):
        given = {"model": str(folder / "best"), "eval_file": str(files["classify", name])}
        assert evaluate(EvaluateConfig(**given), lambda line: None) == results[name]
    final = weights_of(folder / "final")
    checkpoint = weights_of(folder / "checkpoint/step_00000036")
    for name, value in final.items():
        np.testing.assert_array_equal(checkpoint[name], value, err_msg=name)


@pytest.mark.slow
def test_answers_and_their_threshold_are_those_of_what_is_left(settings, tmp_path):
    """Questions without an answer: the threshold is found on the evaluation file, then kept."""
    paths = {}
    for name, count in (("train", 96), ("eval", 24), ("test", 25)):
        data = json.loads(questions(count))
        for row in data["data"][0]["paragraphs"][::3]:
            row["context"] = filler(5)
            row["qas"][0] |= {"answers": [], "is_impossible": True}
        paths[f"{name}_file"] = tmp_path / f"{name}.json"
        paths[f"{name}_file"].write_text(json.dumps(data))
    config = settings("qa", **{k: str(v) for k, v in paths.items()}, epochs=4.0)
    results = finetune(config, tmp_path / "run")
    best = tmp_path / "run/finetuning/best"
    threshold = results["eval"]["null_threshold"]
    assert results["test"]["null_threshold"] == threshold
    assert json.loads((best / "task.json").read_text())["null_threshold"] == threshold
    for name in ("eval", "test"):
        given = {"model": str(best), "eval_file": str(paths[f"{name}_file"])}
        assert evaluate(EvaluateConfig(**given), lambda line: None) == results[name]
        rows = (tmp_path / f"run/finetuning/{name}_predictions.jsonl").read_text().splitlines()
        assert sum(not json.loads(row)["text"] for row in rows) > 0
    assert finetune(config, tmp_path / "run") == results
    final = json.loads((tmp_path / "run/finetuning/final/task.json").read_text())
    assert final["null_threshold"] == threshold


@pytest.mark.slow
def test_a_complete_run_goes_on_with_more_epochs_or_files(settings, tmp_path):
    first = finetune(settings(epochs=1.0, test_file=None), tmp_path / "run")
    assert list(first) == ["eval"]
    more = finetune(settings(epochs=4.0), tmp_path / "run")
    assert list(more) == ["eval", "test"]
    assert more["eval"]["accuracy"] > first["eval"]["accuracy"]


@pytest.mark.slow
def test_weights_are_stored_once(settings, tmp_path):
    """A checkpoint of a run with adapters holds them beside the optimizer, and merged."""
    finetune(settings(lora_rank=3, epochs=1.0), tmp_path / "run")
    (checkpoint,) = sorted((tmp_path / "run/finetuning/checkpoint").iterdir())[-1:]
    with h5py.File(checkpoint / "optimizer.h5") as file:
        adapter = file["bert/encoder/layer_1/attention/value/kernel"]
        a, b, base = (adapter[name][()] for name in ("a", "b", "base"))
    assert a.shape == (24, 3)
    merged = weights_of(checkpoint)["bert/encoder/layer_1/attention/value/kernel"]
    np.testing.assert_allclose(merged, base + 2 * a @ b, atol=1e-6)
    assert not any("lora" in name for name in weights_of(checkpoint))
    assert pathlib.Path(checkpoint / "config.json").exists()
