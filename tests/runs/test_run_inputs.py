"""What a run starts from, and bad input."""

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from run_files import metrics_of, weights_of
from tiny_runs import ARCHITECTURE, command, run_program, write_text
from warm_python import PYTHON

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model import BertForPreTraining
from kbert.model.folder import ModelFolder
from kbert.settings import PretrainConfig
from kbert.train import pretrain


def test_continued_pretraining_needs_the_same_vocabulary(settings, whole, tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("extra\n" + (whole / "data/vocab.txt").read_text())
    more = settings | {
        "init_from": str(whole / "pretrain/final"),
        "bert_config": None,
        "vocab_file": str(vocab),
    }
    with pytest.raises(UserError, match=r"vocabulary or casing differs from .*, so the token ids"):
        pretrain(PretrainConfig(**more), tmp_path / "more")


def test_continued_pretraining_with_an_extended_vocabulary(settings, whole, tmp_path):
    """The learned rows are the start; a new word is known, and kept by the checkpoint."""
    vocab = tmp_path / "vocab.txt"
    vocab.write_text((whole / "data/vocab.txt").read_text() + "abcabc\n")
    more = settings | {
        "init_from": str(whole / "pretrain/final"),
        "bert_config": None,
        "vocab_file": str(vocab),
        "train_steps": 3,
        "learning_rate": 1e-9,
        "jit": "off",
    }
    pretrain(PretrainConfig(**more), tmp_path / "more")
    old, new = (ModelFolder(run / "pretrain/final") for run in (whole, tmp_path / "more"))
    assert new.config.vocab_size == old.config.vocab_size + 1
    assert new.tokenizer.vocab == [*old.tokenizer.vocab, "abcabc"]
    name = "bert/embeddings/word_embeddings/embeddings"
    with old.open_weights() as (_, before), new.open_weights() as (_, after):
        np.testing.assert_allclose(after[name][:-1], before[name], atol=1e-6)


def test_a_prepared_corpus_is_taken_as_it_is(settings, whole, tmp_path):
    prepared = settings | {"input": str(whole / "data/train")}
    pretrain(PretrainConfig(**prepared), tmp_path / "again")
    assert metrics_of(whole) == metrics_of(tmp_path / "again")


def test_plain_text_is_prepared_once_and_again_when_it_changes(settings, tmp_path, capsys):
    text = write_text(tmp_path / "text.txt")
    settings["input"] = str(text)
    for number, expected in enumerate((1, 0, 1)):
        pretrain(PretrainConfig(**settings | {"train_steps": 3}), tmp_path / "run")
        printed = capsys.readouterr().out
        assert printed.count(f"preparing {text}, once") == expected
        assert ("note: the training data has changed" in printed) == (number == 2)
        if not expected:
            write_text(text, documents=13)


def test_a_dry_run_tells_what_the_run_takes_and_writes_none_of_it(settings, tmp_path):
    settings |= {"train_steps": 1000}
    done = subprocess.run(
        [*command(settings, tmp_path / "run"), "--dry_run"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run/pretrain").exists()
    model = BertForPreTraining(
        BertConfig.load(settings["bert_config"], read_vocab_size(tmp_path / "run/data/vocab.txt"))
    )
    for pattern in (
        rf"parameters: {model.count_params():,}\n",
        r"compute: \d\.\d+e\+\d+ floating-point operations per step, \S+ in total; "
        r".* TFLOP/s per device",
        r"memory per device, estimated: 0\.\d\d GiB, .*; peak of this process so far \d\.\d\d GiB",
        r"data: 1,000 steps of 120 tokens with padding, 120,000 in total; [\d.]+ steps per epoch, "
        r"[\d.]+ epochs; a token is seen [\d.]+ times",
        r"time: \d\.\d+ s per step over three steps, .* tokens/s with padding; "
        r"1,000 steps take \d+:",
    ):
        assert re.search(pattern, done.stdout), (pattern, done.stdout)


def read_vocab_size(path):
    return len(path.read_text().splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_length": 25}, "max_seq_length must be at most max_position_embeddings; got 25"),
        ({"bert_config": "huge"}, "bert_config must be one of tiny, mini, .*got 'huge'"),
        ({"input": "nothing/*.txt"}, "no file matches 'nothing/\\*.txt'"),
        ({"eval_input": "nothing/*.txt"}, "no file matches"),
        ({"vocab_file": "nowhere.txt"}, "cannot read nowhere.txt"),
        (
            {"bert_config": "one_segment"},
            "type_vocab_size must be at least 2, because next sentence .* got 1. Set --next",
        ),
        ({"init_from": "no/such/folder"}, "there is no folder no/such/folder"),
        (
            {"eval_input": "the input"},
            "is in both --input and --eval_input; training text cannot be used for evaluation",
        ),
    ],
)
def test_bad_input(settings, tmp_path, change, message):
    if change.get("bert_config") == "one_segment":
        (tmp_path / "one.yaml").write_text(ARCHITECTURE + "type_vocab_size: 1\n")
        change = {"bert_config": str(tmp_path / "one.yaml")}
    if change.get("eval_input") == "the input":
        change = {"eval_input": settings["input"]}
    with pytest.raises(UserError, match=message):
        pretrain(PretrainConfig(**settings | change), tmp_path / "run")


@pytest.mark.parametrize("name", ["./text.txt", "other/../text.txt", "link.txt", "*.txt"])
def test_held_out_text_is_not_the_text_under_another_name(settings, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    settings["input"] = str(write_text(tmp_path / "text.txt"))
    (tmp_path / "link.txt").symlink_to("text.txt")
    with pytest.raises(
        UserError, match=r"/text\.txt is in both --input and --eval_input; training text cannot be"
    ):
        pretrain(PretrainConfig(**settings | {"eval_input": name}), tmp_path / "run")


def test_bad_input_is_refused_before_anything_slow(settings, tmp_path, capsys):
    for change in ({"eval_input": "nothing/*.txt"}, {"bert_config": "nowhere.yaml"}):
        with pytest.raises(UserError):
            pretrain(PretrainConfig(**settings | change), tmp_path / "run")
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_a_vocabulary_too_large_for_the_architecture(settings, tmp_path):
    architecture = tmp_path / "small.yaml"
    architecture.write_text(ARCHITECTURE + "vocab_size: 20\n")
    with pytest.raises(UserError, match=r"the vocabulary has \d+ entries but .* has vocab_size 20"):
        pretrain(PretrainConfig(**settings | {"bert_config": str(architecture)}), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_rate": 15.0}, r"mask_rate must be > 0 and < 1; got 15.0. Write 0.15 for 15 %."),
        ({"input": ""}, "--input is missing: training text"),
        ({"warmup_steps": 12}, "warmup_steps must be < train_steps; got 12 and 12"),
        ({"decay_steps": 11}, "decay_steps must be >= train_steps: .*; got 11 and 12"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, lamb, muon, sgd; got 'adam'"),
        ({"max_seq_length": 4}, "max_seq_length must be >= 5; got 4"),
        ({"precision": "float16"}, "precision must be one of float32, mixed_bfloat16, mixed_flo"),
        ({"jit": "yes"}, "jit must be one of auto, on, off; got 'yes'"),
        ({"nonfinite": "halt"}, "nonfinite must be one of stop, skip; got 'halt'"),
        ({"distribution": "ring"}, "distribution must be one of auto, one_device, mirrored, multi"),
        ({"accumulation_steps": 0}, "accumulation_steps must be >= 1; got 0"),
    ],
)
def test_settings_out_of_range(settings, change, message):
    with pytest.raises(UserError, match=message):
        PretrainConfig(**settings | change)


def test_the_range_of_the_initial_word_embeddings(settings, tmp_path):
    settings |= {"embedding_initializer_range": 0.3, "learning_rate": 1e-9, "train_steps": 2}
    settings["jit"] = "off"
    pretrain(PretrainConfig(**settings | {"warmup_steps": 1}), tmp_path / "run")
    weights = weights_of(tmp_path / "run/pretrain/final")
    # A normal distribution that is cut at two standard deviations has 0.88 of its width.
    for part, width in (("word_embeddings", 0.3), ("position_embeddings", 0.02), ("query/k", 0.02)):
        values = np.concatenate([w.ravel() for name, w in weights.items() if part in name])
        assert values.std() == pytest.approx(0.88 * width, rel=0.15), part


def test_dropout_may_differ_from_the_architecture(settings, whole, tmp_path):
    one = settings | {"train_steps": 1, "warmup_steps": 0, "dropout": 0.25, "jit": "off"}
    pretrain(PretrainConfig(**one), tmp_path / "run")
    more = one | {"init_from": str(whole / "pretrain/final"), "bert_config": None, "dropout": 0.0}
    pretrain(PretrainConfig(**more), tmp_path / "more")
    for name, rate in (("run", 0.25), ("more", 0.0)):
        config = ModelFolder(tmp_path / name / "pretrain/final").config
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == rate
    with pytest.raises(UserError, match=r"dropout is None now, but .* was written with 0.25"):
        pretrain(PretrainConfig(**one | {"dropout": None}), tmp_path / "run")


def test_the_program_prints_one_line_for_bad_input(settings, tmp_path):
    done = run_program(settings | {"input": "nothing.txt"}, tmp_path / "run")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: no file matches 'nothing.txt'. Check the path; put globs in quotes.\n"
    )


def test_the_program_prints_one_line_for_a_folder_that_cannot_be_made(settings):
    text = settings["input"]
    done = run_program(settings, f"{text}/run")
    assert done.returncode == 2
    assert done.stderr == f"error: {text}/run: Not a directory.\n"


def test_the_flagfile_of_a_run_gives_its_settings_back(settings, whole):
    config = PretrainConfig(**settings)
    text = (whole / "pretrain/run.flags").read_text()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        assert value is None or f"--{field.name}=" in text
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    script = (
        "import sys; from absl import flags; from kbert.utils.flags import define, read;"
        "from kbert.settings import PretrainConfig; define(PretrainConfig);"
        "flags.DEFINE_string('output_dir', '', '');"
        "flags.FLAGS(sys.argv); print(read(PretrainConfig))"
    )
    printed = subprocess.run(
        [PYTHON, "-c", script, f"--flagfile={whole}/pretrain/run.flags"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert printed.stdout.strip() == repr(config)


@pytest.mark.slow
def test_another_backend_is_refused(settings, tmp_path):
    done = subprocess.run(
        command(settings, tmp_path / "run", sys.executable),
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": "jax"},
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: training needs Keras' TensorFlow backend; the backend is jax. Set "
        "KERAS_BACKEND=tensorflow, or change ~/.keras/keras.json.\n",
    )


def test_a_casing_that_contradicts_what_is_there(settings, finished, tmp_path):
    final = finished / "pretrain/final"
    message = r"--lower_case=false, but the checkpoint, the corpus or --init_from has true. Remove"
    more = settings | {"init_from": str(final), "bert_config": None, "lower_case": False}
    with pytest.raises(UserError, match=message):
        pretrain(PretrainConfig(**more), tmp_path / "more")
    corpus = {"input": str(finished / "data/train"), "lower_case": False}
    with pytest.raises(UserError, match=message):
        pretrain(PretrainConfig(**settings | corpus), tmp_path / "other")
    pretrain(PretrainConfig(**more | {"lower_case": True}), tmp_path / "same")


def test_an_architecture_too_small_for_its_own_vocabulary_is_refused(settings, finished, tmp_path):
    """As a folder put together by hand may be."""
    path = finished / "pretrain/final/vocab.txt"
    size = len(path.read_text().splitlines())
    path.write_text(path.read_text() + "onemore\n")
    more = settings | {"init_from": str(path.parent), "bert_config": None}
    message = rf"has {size + 1} entries, but the architecture has vocab_size {size}"
    with pytest.raises(UserError, match=message):
        pretrain(PretrainConfig(**more), tmp_path / "more")
