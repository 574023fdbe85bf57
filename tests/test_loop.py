"""Whole runs: learning, resuming to the bit, held-out figures, bad input."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from kbert.config import BertConfig, PretrainConfig
from kbert.data import BertTokenizer
from kbert.errors import UserError
from kbert.model import BertForPreTraining, BertModel
from kbert.train import loop, train

ARCHITECTURE = """
num_hidden_layers: 1
hidden_size: 16
num_attention_heads: 2
intermediate_size: 24
max_position_embeddings: 24
"""
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "over",
    "mat",
    "tree",
    "house",
    "green",
    "big",
]


def write_text(path, documents=12, seed=0):
    """Documents that go through the words in a circle: a masked word is known by its neighbours."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(documents):
        place = rng.integers(len(WORDS))
        for _ in range(rng.integers(3, 7)):
            length = rng.integers(4, 9)
            words = [WORDS[(place + i) % len(WORDS)] for i in range(length)]
            place += length
            lines.append(" ".join(words) + " .")
        lines.append("")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


@pytest.fixture
def settings(tmp_path, text):
    """A run of seconds: 12 steps of a tiny model, dropout on."""
    architecture = tmp_path / "tiny.yaml"
    architecture.write_text(ARCHITECTURE)
    return {
        "input": str(text),
        "eval_input": str(write_text(tmp_path / "heldout.txt", documents=4, seed=1)),
        "vocab_size": 60,
        "bert_config": str(architecture),
        "max_seq_length": 20,
        "global_batch_size": 6,
        "train_steps": 12,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "log_every_steps": 1,
        "eval_every_steps": 6,
        "eval_examples": 12,
        "save_every_steps": 5,
    }


def metrics_of(run):
    lines = (pathlib.Path(run) / "pretrain" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("tokens_per_second", None)
    return rows


def weights_of(folder):
    found = {}
    with h5py.File(pathlib.Path(folder) / "weights.h5") as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return found


def assert_same_run(first, second):
    assert metrics_of(first) == metrics_of(second)
    a, b = weights_of(first / "pretrain/final"), weights_of(second / "pretrain/final")
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def command(settings, output_dir):
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "kbert.pretrain", *flags, f"--output_dir={output_dir}"]


def run_program(settings, output_dir):
    return subprocess.run(
        command(settings, output_dir), capture_output=True, text=True, timeout=300
    )


def test_a_run_writes_what_it_promises(settings, tmp_path, capsys):
    results = train(PretrainConfig(**settings), tmp_path / "run")
    folder = tmp_path / "run/pretrain"
    rows = metrics_of(tmp_path / "run")
    train_rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in train_rows] == list(range(1, 13))
    assert set(train_rows[0]) == {
        *("step", "loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "learning_rate")
    }
    eval_rows = [row for row in rows if "eval_mlm_loss" in row]
    assert [row["step"] for row in eval_rows] == [6, 12]
    assert eval_rows[0]["eval_mlm_perplexity"] == pytest.approx(
        np.exp(eval_rows[0]["eval_mlm_loss"])
    )
    assert results["eval_mlm_loss"] == eval_rows[-1]["eval_mlm_loss"]
    assert list(folder.glob("tensorboard/events*"))
    assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == [
        "step_00000010",
        "step_00000012",
    ]
    for name in ("final", "best"):
        model = BertForPreTraining.from_pretrained(folder / name)
        assert BertTokenizer.from_pretrained(folder / name).vocab_size == model.config.vocab_size
    printed = capsys.readouterr().out
    assert "unigram entropy" in printed and "ETA" in printed and f"weights in {folder}" in printed


def test_the_model_learns_from_context_and_best_is_the_lowest_held_out_loss(settings, tmp_path):
    """With seeds 0, 1 and 2 it ends 1.1 to 1.6 nats below the unigram entropy."""
    architecture = ARCHITECTURE.replace("size: 16", "size: 32").replace("size: 24", "size: 64")
    dropout = "hidden_dropout_prob: 0\nattention_probs_dropout_prob: 0\n"
    pathlib.Path(settings["bert_config"]).write_text(architecture + dropout)
    write_text(pathlib.Path(settings["input"]), documents=40)
    settings |= {"train_steps": 700, "log_every_steps": 100, "eval_every_steps": 100}
    settings |= {"global_batch_size": 16, "eval_examples": 32, "save_every_steps": 700}
    settings |= {"learning_rate": 1e-3, "warmup_steps": 20}
    results = train(PretrainConfig(**settings), tmp_path / "run")
    losses = [
        row["eval_mlm_loss"] for row in metrics_of(tmp_path / "run") if "eval_mlm_loss" in row
    ]
    assert results["eval_mlm_loss"] < results["eval_unigram_entropy"] - 0.5
    state = json.loads((tmp_path / "run/pretrain/checkpoint/step_00000700/state.json").read_text())
    assert state["best_mlm_loss"] == min(losses)


def test_runs_repeat_and_the_seed_matters(settings, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(PretrainConfig(**settings, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert metrics_of(tmp_path / "a") != metrics_of(tmp_path / "c")


def test_a_window_of_the_log_survives_a_stop(settings, tmp_path):
    """Logged every 8 steps, stopped at 5: the first line still averages steps 1 to 8."""
    settings |= {"log_every_steps": 8, "train_steps": 16}
    train(PretrainConfig(**settings), tmp_path / "whole")
    train(PretrainConfig(**settings), tmp_path / "cut")
    folder = tmp_path / "cut/pretrain/checkpoint"
    train_again = PretrainConfig(**settings)
    for name in ("step_00000015", "step_00000016"):
        (folder / name).rename(tmp_path / name)
    (tmp_path / "step_00000015").rename(folder / "step_00000015")
    train(train_again, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_killed_runs_go_on_to_the_bit(settings, tmp_path, precision):
    """60 steps at once = 30, `kill -9`, the rest: every loss and every weight, dropout on."""
    settings |= {"train_steps": 60, "save_every_steps": 10, "eval_every_steps": 20}
    settings |= {"precision": precision}
    assert run_program(settings, tmp_path / "whole").returncode == 0
    log = tmp_path / "killed/pretrain/metrics.jsonl"
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen(command(settings, tmp_path / "killed"), stdout=out, stderr=out)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if log.exists() and len(log.read_text().splitlines()) >= 33:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = len([row for row in metrics_of(tmp_path / "killed") if "loss" in row])
    assert 30 <= reached < 60, (tmp_path / "out").read_text()
    again = run_program(settings, tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert "starting from step" in again.stdout
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_sigterm_saves_and_tells_how_to_go_on(settings, tmp_path):
    whole = train(PretrainConfig(**settings | {"train_steps": 200}), tmp_path / "whole")
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(settings | {"train_steps": 200}, run), stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 9/"):
            process.terminate()
            break
    rest = process.stdout.read()
    assert process.wait() == 0
    assert f"python -m kbert.pretrain --flagfile={run}/pretrain/run.flags" in rest
    resumed = subprocess.run(
        [sys.executable, "-m", "kbert.pretrain", f"--flagfile={run}/pretrain/run.flags"],
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "whole", run)
    assert whole["loss"] == metrics_of(run)[-2]["loss"]


def test_a_stop_during_an_evaluation_is_saved(settings, tmp_path, monkeypatch, capsys):
    evaluate = loop._Run._evaluate

    def evaluate_and_interrupt(self, writer):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, writer)

    monkeypatch.setattr(loop._Run, "_evaluate", evaluate_and_interrupt)
    train(PretrainConfig(**settings | {"eval_every_steps": 3}), tmp_path / "run")
    printed = capsys.readouterr().out
    step = int(re.search(r"stopped and saved at step (\d+)", printed)[1])
    assert (tmp_path / f"run/pretrain/checkpoint/step_{step:08d}").exists()


def test_a_damaged_checkpoint_is_passed_over(settings, tmp_path, capsys):
    train(PretrainConfig(**settings), tmp_path / "run")
    before = metrics_of(tmp_path / "run")
    newest = tmp_path / "run/pretrain/checkpoint/step_00000012"
    data = bytearray((newest / "variables.data-00000-of-00001").read_bytes())
    data[100] ^= 1
    (newest / "variables.data-00000-of-00001").write_bytes(data)
    train(PretrainConfig(**settings), tmp_path / "run")
    assert "step_00000012 is damaged" in capsys.readouterr().out
    assert metrics_of(tmp_path / "run") == before


def test_a_complete_run_is_left_as_it_is(settings, tmp_path, capsys):
    train(PretrainConfig(**settings), tmp_path / "run")
    before = weights_of(tmp_path / "run/pretrain/final")
    train(PretrainConfig(**settings), tmp_path / "run")
    assert "this run is complete: step 12 of 12" in capsys.readouterr().out
    after = weights_of(tmp_path / "run/pretrain/final")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_changed_flags_are_reported_on_resume(settings, tmp_path, capsys):
    train(PretrainConfig(**settings), tmp_path / "run")
    train(PretrainConfig(**settings | {"train_steps": 14}), tmp_path / "run")
    assert "note: --train_steps is 14 now; before the stop it was 12" in capsys.readouterr().out


def test_a_contradicting_architecture_is_refused_on_resume(settings, tmp_path):
    train(PretrainConfig(**settings), tmp_path / "run")
    other = tmp_path / "other.yaml"
    other.write_text(ARCHITECTURE.replace("hidden_size: 16", "hidden_size: 8"))
    with pytest.raises(UserError, match=r"hidden_size 8, but the checkpoint has 16"):
        train(PretrainConfig(**settings | {"bert_config": str(other)}), tmp_path / "run")


def test_the_architecture_comes_from_the_checkpoint(settings, tmp_path):
    train(PretrainConfig(**settings), tmp_path / "run")
    train(PretrainConfig(**settings | {"bert_config": None, "train_steps": 13}), tmp_path / "run")
    config = BertConfig.from_file(tmp_path / "run/pretrain/final/config.json")
    assert config.hidden_size == 16


def test_continued_pretraining_starts_from_the_weights(settings, tmp_path, capsys):
    train(PretrainConfig(**settings), tmp_path / "run")
    final = tmp_path / "run/pretrain/final"
    more = settings | {"init_from": str(final), "bert_config": None, "learning_rate": 1e-9}
    train(PretrainConfig(**more | {"weight_decay": 0.0}), tmp_path / "more")
    assert f"starting from the weights of {final}" in capsys.readouterr().out
    before, after = weights_of(final), weights_of(tmp_path / "more/pretrain/final")
    for name in before:
        np.testing.assert_allclose(before[name], after[name], atol=1e-6, err_msg=name)


def test_continued_pretraining_needs_the_same_vocabulary(settings, tmp_path):
    train(PretrainConfig(**settings), tmp_path / "run")
    vocab = tmp_path / "vocab.txt"
    vocab.write_text((tmp_path / "run/data/vocab.txt").read_text() + "extra\n")
    more = settings | {
        "init_from": str(tmp_path / "run/pretrain/final"),
        "bert_config": None,
        "vocab_file": str(vocab),
    }
    with pytest.raises(UserError, match=r"vocabulary or casing differs from that of"):
        train(PretrainConfig(**more), tmp_path / "more")


def test_a_prepared_corpus_is_taken_as_it_is(settings, tmp_path):
    train(PretrainConfig(**settings), tmp_path / "run")
    prepared = settings | {"input": str(tmp_path / "run/data/train")}
    train(PretrainConfig(**prepared), tmp_path / "again")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "again")


def test_plain_text_is_prepared_once_and_again_when_it_changes(settings, tmp_path, text, capsys):
    for expected in (1, 0, 1):
        train(PretrainConfig(**settings | {"train_steps": 3}), tmp_path / "run")
        printed = capsys.readouterr().out
        assert printed.count(f"preparing {text}, once") == expected
        if not expected:
            write_text(text, documents=13)


def test_whole_word_masking_and_other_settings_reach_the_pipeline(settings, tmp_path):
    seen = set()
    for change in (
        {},
        {"whole_word_mask": True},
        {"mask_rate": 0.4},
        {"max_predictions_per_seq": 1},
        {"short_seq_prob": 1.0},
        {"clip_norm": 1e-3},
        {"optimizer": "sgd"},
        {"weight_decay": 10.0},
    ):
        settings_now = settings | {"train_steps": 4, "warmup_steps": 0} | change
        train(PretrainConfig(**settings_now), tmp_path / "-".join(["run", *change]))
        seen.add(json.dumps(metrics_of(tmp_path / "-".join(["run", *change]))[3]))
    assert len(seen) == 8


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoints(settings, tmp_path):
    train(PretrainConfig(**settings), tmp_path / "run")
    final = tmp_path / "run/pretrain/final"
    with h5py.File(final / "weights.h5", "a") as file:
        file["mlm/output_bias"][3] = np.inf
    more = settings | {"init_from": str(final), "bert_config": None}
    with pytest.raises(UserError, match=r"not finite at step 1\. .*last checkpoint is none yet"):
        train(PretrainConfig(**more), tmp_path / "more")
    assert not (tmp_path / "more/pretrain/checkpoint").exists()


def test_a_model_of_another_class_reads_the_run(settings, tmp_path):
    train(PretrainConfig(**settings), tmp_path / "run")
    model = BertModel.from_pretrained(tmp_path / "run/pretrain/final")
    assert model(np.ones((2, 5), "int32"))["pooler_output"].shape == (2, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_length": 25}, "max_seq_length must be at most max_position_embeddings; got 25"),
        ({"bert_config": "huge"}, "bert_config must be one of tiny, mini, .*got 'huge'"),
        ({"input": "nothing/*.txt"}, "no file matches 'nothing/\\*.txt'"),
        ({"eval_input": "nothing/*.txt"}, "no file matches"),
        ({"vocab_file": "nowhere.txt"}, "cannot read the vocabulary nowhere.txt"),
        ({"bert_config": "one_segment"}, "type_vocab_size must be at least 2, got 1"),
        ({"init_from": "nowhere"}, "nowhere has no usable tokenizer_config.json"),
    ],
)
def test_bad_input(settings, tmp_path, change, message):
    if change.get("bert_config") == "one_segment":
        (tmp_path / "one.yaml").write_text(ARCHITECTURE + "type_vocab_size: 1\n")
        change = {"bert_config": str(tmp_path / "one.yaml")}
    with pytest.raises(UserError, match=message):
        train(PretrainConfig(**settings | change), tmp_path / "run")


def test_bad_input_is_refused_before_anything_slow(settings, tmp_path, capsys):
    for change in ({"eval_input": "nothing/*.txt"}, {"bert_config": "nowhere.yaml"}):
        with pytest.raises(UserError):
            train(PretrainConfig(**settings | change), tmp_path / "run")
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_a_vocabulary_too_large_for_the_architecture(settings, tmp_path):
    architecture = tmp_path / "small.yaml"
    architecture.write_text(ARCHITECTURE + "vocab_size: 20\n")
    with pytest.raises(
        UserError, match=r"the vocabulary has \d+ entries but .* says vocab_size 20"
    ):
        train(PretrainConfig(**settings | {"bert_config": str(architecture)}), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_rate": 15.0}, r"mask_rate must be > 0 and < 1; got 15.0. Write 0.15 for 15 %."),
        ({"input": ""}, "input is empty: say what to learn from"),
        ({"warmup_steps": 12}, "warmup_steps must be < train_steps; got 12 and 12"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd; got 'adam'"),
        ({"max_seq_length": 4}, "max_seq_length must be >= 5; got 4"),
    ],
)
def test_settings_out_of_range(settings, change, message):
    with pytest.raises(UserError, match=message):
        PretrainConfig(**settings | change)


def test_the_program_prints_one_line_for_bad_input(settings, tmp_path):
    done = run_program(settings | {"input": "nothing.txt"}, tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == "error: no file matches 'nothing.txt'. Check the path; quote a glob.\n"


def test_the_program_prints_one_line_for_a_folder_that_cannot_be_made(settings, tmp_path, text):
    done = run_program(settings, text / "run")
    assert done.returncode == 2
    assert done.stderr == f"error: {text}/run/data: Not a directory.\n"


def test_the_flagfile_of_a_run_gives_its_settings_back(settings, tmp_path):
    config = PretrainConfig(**settings)
    train(config, tmp_path / "run")
    text = (tmp_path / "run/pretrain/run.flags").read_text()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        assert value is None or f"--{field.name}=" in text
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    script = (
        "import sys; from absl import flags; import kbert.pretrain; from kbert.flags import read;"
        "from kbert.config import PretrainConfig; flags.FLAGS(sys.argv);"
        "print(read(PretrainConfig))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, f"--flagfile={tmp_path}/run/pretrain/run.flags"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert printed.stdout.strip() == repr(config)
