"""Whole runs: what they write, learning, repeating, held-out figures."""

import json
import pathlib
import re

import numpy as np
import pytest
from run_files import metrics_of, weights_of
from tiny_runs import ARCHITECTURE, assert_same_run, run_program, write_text

from kbert.errors import UserError
from kbert.model import BertForPreTraining, BertModel
from kbert.settings import PretrainConfig
from kbert.tokenizer import BertTokenizer
from kbert.train import pretrain


@pytest.mark.smoke
def test_a_run_writes_what_it_promises(settings, tmp_path, curves, capsys):
    results = pretrain(PretrainConfig(**settings), tmp_path / "run")
    folder = tmp_path / "run/pretrain"
    rows = metrics_of(tmp_path / "run")
    train_rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in train_rows] == list(range(1, 13))
    assert set(train_rows[0]) == {
        *("step", "loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"),
        *("learning_rate", "gradient_norm", "skipped_steps"),
    }
    eval_rows = [row for row in rows if "eval_mlm_loss" in row]
    assert [row["step"] for row in eval_rows] == [6, 12]
    assert eval_rows[0]["eval_mlm_perplexity"] == pytest.approx(
        np.exp(eval_rows[0]["eval_mlm_loss"])
    )
    assert results["eval_mlm_loss"] == eval_rows[-1]["eval_mlm_loss"]
    assert list(folder.glob("tensorboard/events*")) and (folder / "curves.png").exists()
    assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == [
        "step_00000010",
        "step_00000012",
    ]
    for name in ("final", "best"):
        model = BertForPreTraining.from_pretrained(folder / name)
        assert BertTokenizer.from_pretrained(folder / name).vocab_size == model.config.vocab_size
    printed = capsys.readouterr().out
    assert "unigram entropy" in printed and "ETA" in printed and f"weights in {folder}" in printed
    learned = rf"MLM loss: \d\.\d\d before training, {results['eval_mlm_loss']:.2f} after it \("
    assert re.search(learned, printed) and len(re.findall(r"rank [\d,]+ -> \d", printed)) == 5


def test_a_profile_of_some_steps(settings, tmp_path, capsys):
    pretrain(PretrainConfig(**settings | {"profile": "3,5"}), tmp_path / "run")
    (trace,) = (tmp_path / "run").rglob("*.xplane.pb")
    assert trace.is_relative_to(tmp_path / "run/pretrain/tensorboard")
    assert "wrote a profile that begins at step 3 and ended as requested" in capsys.readouterr().out
    with pytest.raises(UserError, match="profile must be START,STOP: two step numbers"):
        pretrain(PretrainConfig(**settings | {"profile": "5"}), tmp_path / "other")


def test_the_time_without_a_batch_is_logged(whole):
    rows = [row for row in map(json.loads, open(whole / "pretrain/metrics.jsonl"))]
    waits = [row["input_wait"] for row in rows if "loss" in row]
    assert waits and all(0 <= wait < 1 for wait in waits)


def test_the_model_learns_from_context_and_best_is_the_lowest_held_out_loss(settings, tmp_path):
    """With seeds 0, 1 and 2 it ends 1.1 to 1.6 nats below the unigram entropy."""
    architecture = ARCHITECTURE.replace("size: 16", "size: 32").replace("size: 24", "size: 64")
    dropout = "hidden_dropout_prob: 0\nattention_probs_dropout_prob: 0\n"
    settings["bert_config"] = str(tmp_path / "tiny.yaml")
    pathlib.Path(settings["bert_config"]).write_text(architecture + dropout)
    settings["input"] = str(write_text(tmp_path / "text.txt", documents=40))
    settings |= {"train_steps": 700, "log_every_steps": 100, "eval_every_steps": 100}
    settings |= {"global_batch_size": 16, "eval_examples": 32, "save_every_steps": 700}
    settings |= {"learning_rate": 1e-3, "warmup_steps": 20}
    results = pretrain(PretrainConfig(**settings), tmp_path / "run")
    losses = [
        row["eval_mlm_loss"] for row in metrics_of(tmp_path / "run") if "eval_mlm_loss" in row
    ]
    assert results["eval_mlm_loss"] < results["eval_unigram_entropy"] - 0.5
    state = json.loads((tmp_path / "run/pretrain/checkpoint/step_00000700/state.json").read_text())
    assert state["best"] == -min(losses)


@pytest.mark.slow
def test_runs_repeat_and_the_seed_matters(settings, tmp_path, whole):
    for seed in (0, 1):
        pretrain(PretrainConfig(**settings, seed=seed), tmp_path / str(seed))
    assert_same_run(whole, tmp_path / "0")
    assert metrics_of(whole) != metrics_of(tmp_path / "1")


@pytest.mark.slow
def test_deterministic_ops_compute_the_same(settings, tmp_path, whole):
    done = run_program(settings | {"deterministic": True}, tmp_path / "deterministic")
    assert done.returncode == 0, done.stderr
    losses = [
        [row["loss"] for row in metrics_of(run) if "loss" in row]
        for run in (whole, tmp_path / "deterministic")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)  # other orders of summation


@pytest.mark.slow
def test_held_out_figures_do_not_depend_on_how_a_run_trains(settings, tmp_path):
    """The same weights, at a rate that moves nothing: the same figures to the last bit."""
    settings |= {"train_steps": 1, "warmup_steps": 0, "learning_rate": 1e-30}
    changes = (
        {},
        {
            **{"mask_rate": 0.4, "global_batch_size": 9, "short_seq_prob": 1.0},
            **{"accumulation_steps": 3, "remat": True},
            **{"whole_word_mask": True, "max_predictions_per_seq": 1},
        },
    )
    found = []
    for number, change in enumerate(changes):
        results = pretrain(PretrainConfig(**settings | change), tmp_path / str(number))
        found.append({name: value for name, value in results.items() if name.startswith("eval_")})
    assert found[0] == found[1] and len(found[0]) == 7


def test_a_checkpoint_is_a_folder_of_weights(whole):
    model = BertModel.from_pretrained(whole / "pretrain/checkpoint/step_00000012")
    for name, value in weights_of(whole / "pretrain/final").items():
        if name.startswith("bert/"):
            np.testing.assert_array_equal(value, np.array(model.named_weights()[name]))


@pytest.mark.slow
def test_whole_word_masking_and_other_settings_reach_the_pipeline(settings, tmp_path):
    seen = set()
    changes = (
        {},
        {"whole_word_mask": True},
        {"mask_rate": 0.4},
        {"max_predictions_per_seq": 1},
        {"short_seq_prob": 1.0},
        {"next_sentence": False},
        {"clip_norm": 1e-3},
        {"optimizer": "sgd"},
        {"weight_decay": 10.0},
        {"optimizer": "lamb"},
        {"adam_epsilon": 1e-2},
        {"decay_power": 2.0},
        {"decay_steps": 40},
    )
    for number, change in enumerate(changes):
        settings_now = settings | {"train_steps": 4, "warmup_steps": 0} | change
        pretrain(PretrainConfig(**settings_now), tmp_path / str(number))
        seen.add(json.dumps(metrics_of(tmp_path / str(number))[3]))
    assert len(seen) == len(changes)


def test_a_model_of_another_class_reads_the_run(whole):
    model = BertModel.from_pretrained(whole / "pretrain/final")
    assert model(np.ones((2, 5), "int32"))["pooler_output"].shape == (2, 16)
