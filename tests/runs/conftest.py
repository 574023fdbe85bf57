"""A pretraining run of seconds: 12 steps of a tiny model, dropout on."""

import shutil

import pytest
from short_runs import shorten
from tiny_runs import ARCHITECTURE, write_text

from kbert.settings import PretrainConfig
from kbert.train import pretrain


@pytest.fixture(scope="session")
def _settings(made_once):
    def fill(folder):
        (folder / "tiny.yaml").write_text(ARCHITECTURE)
        write_text(folder / "text.txt")
        write_text(folder / "heldout.txt", documents=4, seed=1)

    folder = made_once("tiny", fill)
    return {
        "input": str(folder / "text.txt"),
        "eval_input": str(folder / "heldout.txt"),
        "vocab_size": 60,
        "bert_config": str(folder / "tiny.yaml"),
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


@pytest.fixture
def settings(_settings):
    """Settings of PretrainConfig; the files that they name are those of all tests."""
    return dict(_settings)


@pytest.fixture(scope="session")
def whole(_settings, made_once):
    """Folder of a run of these settings, which no test may change."""

    def fill(folder):
        with pytest.MonkeyPatch.context() as patch:
            shorten(patch.setattr)
            pretrain(PretrainConfig(**_settings), folder)

    return made_once("run", fill)


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")
