"""Runs without next sentence prediction."""

import numpy as np
import pytest
from run_files import weights_of

from kbert import Predictor
from kbert.settings import PretrainConfig
from kbert.train import pretrain


@pytest.fixture
def settings(settings):
    return settings | {"next_sentence": False, "jit": "off"}


def test_a_run_starts_from_weights_with_both_heads(settings, whole, tmp_path, capsys):
    """The encoder and the head for masked words are taken; the optimizer is another one."""
    checkpoint = whole / "pretrain/checkpoint/step_00000012"
    settings |= {"bert_config": None, "init_from": str(checkpoint), "learning_rate": 1e-9}
    settings |= {"train_steps": 2, "warmup_steps": 1}
    results = pretrain(PretrainConfig(**settings), tmp_path / "run")
    printed = capsys.readouterr().out
    origin = "with a fresh optimizer (it was trained with adamw and next sentence prediction)"
    assert f"starting from the weights of {checkpoint}, {origin}" in printed
    assert "nsp" not in printed and not any("nsp" in name for name in results)
    assert {"loss", "mlm_loss", "mlm_accuracy", "eval_mlm_perplexity"} <= set(results)
    before, after = (weights_of(run / "pretrain/final") for run in (whole, tmp_path / "run"))
    missing = {
        f"{n}/{k}" for n in ("bert/pooler/dense", "nsp/classifier") for k in ("kernel", "bias")
    }
    assert before.keys() - after.keys() == missing and after.keys() < before.keys()
    for name, value in after.items():
        np.testing.assert_allclose(value, before[name], atol=1e-6)
    (answer,) = Predictor.from_pretrained(tmp_path / "run/pretrain/final").fill_mask(
        ["the [MASK] sat ."]
    )
    assert len(answer["masks"][0]) == 5


@pytest.mark.slow
def test_held_out_figures_do_not_depend_on_how_a_run_trains(settings, tmp_path):
    """The same weights, at a rate that moves nothing: the same figures to the last bit."""
    settings |= {"train_steps": 1, "warmup_steps": 0, "learning_rate": 1e-30}
    changes = {"mask_rate": 0.4, "packing": True, "short_seq_prob": 1.0, "whole_word_mask": True}
    found = []
    for number, change in enumerate(({}, changes)):
        results = pretrain(PretrainConfig(**settings | change), tmp_path / str(number))
        found.append({name: value for name, value in results.items() if name.startswith("eval_")})
    assert found[0] == found[1] and len(found[0]) == 5
