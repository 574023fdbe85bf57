"""What fine-tuning does with its examples: dry runs, held-out parts, cross-validation, reuse."""

import dataclasses
import json
import re
import statistics
import subprocess

import pytest
from run_files import stop_at, weights_of
from test_finetune import assert_same_run, files, pretrained, settings  # noqa: F401
from warm_python import PYTHON

from kbert.errors import UserError
from kbert.settings import DistillConfig, FinetuneConfig
from kbert.train import distill, finetune
from kbert.utils.flags import as_flagfile

REPORT = (
    r"task: classify, 96 train, 24 eval, 25 test examples; an epoch has 12 steps\n"
    r"train labels: neg 32 \(33\.3%\), pos 32 \(33\.3%\), so 32 \(33\.3%\)\n"
    r"eval labels: neg 8 .*\n"
    r"test labels: neg 9 .*\n"
    r"example 1, classify_train\.tsv, line 1:\n  text: [a-z ]+\n  label: neg\n"
    r"example 2, classify_train\.tsv, line 2:\n  text: [a-z ]+\n  label: pos\n"
)
COST = (
    r"train lengths in tokens: up to \d+ \(50 %\), .*; \d+\.\d% are longer than "
    r"--max_seq_length=8\n"
    r"eval lengths in tokens: .*\ntest lengths in tokens: .*\n"
    r"memory per device, estimated: 0\.00 GiB, .* peak of this process so far \d\.\d\d GiB, .*\n"
    r"time: \d+\.\d{3} s per step over three steps of the longest examples, padded to 8 tokens; "
    r"batches are padded to 8 on average, so 36 steps take about 0:0\d without evaluations"
)


def test_a_dry_run_reports_data_and_cost_and_writes_nothing(settings, tmp_path, capsys):  # noqa: F811
    config = settings(max_seq_length=8)
    assert finetune(config, tmp_path / "new/run", dry_run=True) == {}
    printed = capsys.readouterr().out
    for pattern in (
        REPORT,
        COST,
        r"note: train: \d\d of 96 examples \(.*%\) exceed --max",
    ):
        assert re.search(pattern, printed), printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("task", ["qa", "choice", "tag", "regress", "multilabel", "pair"])
def test_dry_runs_of_other_tasks(settings, tmp_path, capsys, task):  # noqa: F811
    config = settings(task, max_answer_length=1)
    finetune(config, tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().out
    assert "example 2, " in printed and "train labels: " in printed and "\ntime: " in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_program_and_distillation(settings, tmp_path, capsys):  # noqa: F811
    """A dry run of a complete run leaves it as it is; a teacher counts."""
    finetune(settings(epochs=1.0), tmp_path / "run")
    best = tmp_path / "run/finetuning/best"

    def times():
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}

    before = times()
    (tmp_path / "x.flags").write_text(as_flagfile(settings(epochs=1.0), ""))
    command = [PYTHON, "-m", "kbert.finetune", f"--flagfile={tmp_path}/x.flags", "--dry_run"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/run"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "\ntime: " in done.stdout, done.stderr
    shared = {"max_seq_length": 24, "batch_size": 8, "train_file": settings().train_file}
    capsys.readouterr()
    distill(DistillConfig(teacher=str(best), **shared), tmp_path / "small", dry_run=True)
    assert "\nmemory per device" in capsys.readouterr().out
    assert times() == before and not (tmp_path / "small").exists()


@pytest.mark.slow
def test_a_held_out_part_selects_the_best_weights(settings, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The same after a stop; another fraction would be another run."""
    config = settings(eval_file=None, eval_fraction=0.25, epochs=2.0)
    results = finetune(config, tmp_path / "whole")
    assert list(results) == ["eval", "test"]
    printed = capsys.readouterr().out
    assert "task: classify, 72 train, 24 eval, 25 test examples" in printed
    assert "eval: 24 examples of --train_file, not trained on\n" in printed
    rows = (tmp_path / "whole/finetuning/eval_predictions.jsonl").read_text().splitlines()
    assert len(rows) == 24 and all("classify_train.tsv" in row for row in rows)
    stop_at(monkeypatch, 11)
    finetune(config, tmp_path / "cut")
    monkeypatch.undo()
    finetune(config, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    with pytest.raises(UserError, match=r"eval_fraction is 0\.5 now, but .* was written with 0\.2"):
        finetune(dataclasses.replace(config, eval_fraction=0.5), tmp_path / "cut")


@pytest.mark.slow
def test_cross_validation(settings, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Resumes where it stopped; a fold on its own is the same run."""
    config = settings(eval_file=None, test_file=None, folds=3, epochs=1.0)
    stop_at(monkeypatch, 5)
    finetune(config, tmp_path / "run")
    assert not (tmp_path / "run/fold_2").exists()
    monkeypatch.undo()
    scores = finetune(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/folds.json").read_text()) == scores
    folds = [tmp_path / f"run/fold_{i}" for i in (1, 2, 3)]
    found = [json.loads((f / "finetuning/results.json").read_text())["test"] for f in folds]
    for name in ("accuracy", "f1_macro"):
        values = [row[name] for row in found]
        expected = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
        assert scores["test"][name] == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert "test scores of 3 folds: mean and standard deviation\n  accuracy " in printed
    files = [f / "finetuning/test_predictions.jsonl" for f in folds]  # noqa: F811
    rows = [json.loads(row)["where"] for f in files for row in f.read_text().splitlines()]
    assert len(rows) == len(set(rows)) == 96
    assert finetune(config, tmp_path / "run") == scores
    printed = capsys.readouterr().out
    assert printed.count("this run is complete: step 8 of 8") == 3 and "| loss" not in printed
    finetune(dataclasses.replace(config, fold=2), tmp_path / "alone")
    alone, second = (weights_of(f / "finetuning/final") for f in (tmp_path / "alone", folds[1]))
    assert len(alone) > 20 and all((second[name] == alone[name]).all() for name in alone)


@pytest.mark.slow
def test_unknown_labels_of_the_test_file(settings, tmp_path, capsys):  # noqa: F811
    path = tmp_path / "test.tsv"
    path.write_text("the film was so\tso\nthe cast\todd\nthe plot\tneg\n")
    config = settings(test_file=str(path), unknown_labels="wrong", epochs=1.0)
    results = finetune(config, tmp_path / "run")
    assert results["test"]["accuracy"] <= 2 / 3
    assert "note: 1 of 3 examples have unknown labels and count as wrong: odd (1)" in (
        capsys.readouterr().out
    )
    assert "odd" in (tmp_path / "run/finetuning/test_report.txt").read_text()
    with pytest.raises(UserError, match=r"unknown labels: odd \(1\)"):
        finetune(dataclasses.replace(config, unknown_labels="error"), tmp_path / "other")


@pytest.mark.slow
def test_a_complete_run_with_other_flags(settings, tmp_path, capsys):  # noqa: F811
    """Neither its weights nor its flags change; a new test file is scored."""
    config = settings(epochs=1.0, test_file=None)
    finetune(config, tmp_path / "run")
    flags = (tmp_path / "run/finetuning/run.flags").read_bytes()
    weights = weights_of(tmp_path / "run/finetuning/final")
    capsys.readouterr()
    other = tmp_path / "other.tsv"
    other.write_text("".join(open(config.train_file).readlines()[::-1]))
    changes = {"learning_rate": 0.5, "test_file": config.eval_file, "train_file": str(other)}
    results = finetune(dataclasses.replace(config, **changes), tmp_path / "run")
    assert results["test"] == results["eval"]
    printed = capsys.readouterr().out
    for line in (
        "note: --learning_rate has no effect: the run is complete and used 0.005\n",
        f"note: --train_file has no effect: the run is complete and used {config.train_file}\n",
        f"note: --test_file is now {config.eval_file}; the checkpoint was written with None\n",
        "note: the training data has changed; the run is complete and not changed\n",
        "this run is complete: step 12 of 12; to train again, use another --output_dir\n",
    ):
        assert line in printed, printed
    assert (tmp_path / "run/finetuning/run.flags").read_bytes() == flags
    after = weights_of(tmp_path / "run/finetuning/final")
    assert all((after[name] == value).all() for name, value in weights.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_fraction": 0.1}, "--eval_fraction and --eval_file cannot be combined"),
        ({"eval_fraction": 10.0}, r"eval_fraction must be >= 0 and < 1; got 10.0. Write 0.15 for"),
        ({"folds": 1}, "folds must be >= 2; got 1"),
        ({"fold": 1}, "--fold must be at most --folds; got 1 and no --folds"),
        ({"folds": 3, "fold": 4}, "--fold must be at most --folds; got 4 and 3"),
        ({"folds": 3, "test_file": "x"}, "--folds scores each model on a part of --train_file"),
        ({"unknown_labels": "skip"}, "unknown_labels must be one of error, wrong; got 'skip'"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    given = {"task": "classify", "init_from": "a", "train_file": "b", "eval_file": "c"}
    with pytest.raises(UserError, match=message):
        FinetuneConfig(**given | changes)


def test_folds_of_several_workers(settings, tmp_path):  # noqa: F811
    config = settings(test_file=None, folds=3, distribution="multi_worker")
    with pytest.raises(UserError, match=r"--folds does not support --distribution=multi_worker"):
        finetune(config, tmp_path / "run")
