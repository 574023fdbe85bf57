"""Weights & Biases in its offline mode: what it wrote is read back; and its failures."""

import importlib.machinery
import json
import struct
import sys
import threading
import time
import types

import PIL.Image
import pytest

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train import pretrain, wandb_logger
from kbert.train.start import default_callbacks
from kbert.train.wandb_logger import WandbLogger, check_wandb

CONFIG = PretrainConfig(input="a.txt", wandb_project="berts", learning_rate=3e-4)


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")


def records(folder):
    """What W&B wrote, a list of records for each start.

    Its Python package has the messages, and no reader of the files any more: they are LevelDB logs,
    of blocks of 32 KiB with pieces of records, each after its checksum, length and kind.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, place, whole, found = path.read_bytes(), 7, b"", []
        assert data[:4] == b":W&B"
        while place < len(data):
            if 32768 - place % 32768 < 7:  # the rest of a block has no room for another
                place += 32768 - place % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", data, place)
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # a whole record, or the last piece of one
                found.append(Record.FromString(whole))
                whole = b""
        yield found


def finished(folder, count):
    """The records of so many starts, whose files may be a moment behind."""
    for _ in range(300):
        starts = list(records(folder))
        if len(starts) == count and all(s and s[-1].HasField("exit") for s in starts):
            return starts
        time.sleep(0.1)
    raise AssertionError(f"{starts} in {folder}")


def values(items):
    """dict of name -> value of the items of a record."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.slow
def test_what_it_gets_and_that_a_run_goes_on_as_the_same(offline, tmp_path, capsys):
    folder = tmp_path / "run" / "pretrain"
    folder.mkdir(parents=True)
    PIL.Image.new("RGB", (8, 5)).save(folder / "curves.png")
    rows = [(10, {"loss": 2.5}), (10, {"eval_mlm_loss": 2.25}), (20, {"loss": 2.0})]
    results = {"test": {"accuracy": 0.75, "confusion": [[1]]}, "loss": 1.5}
    for part, end in ((rows, None), ([(30, {"loss": 1.5})], results)):
        logger = begun(folder, tmp_path / "run", hidden_size=24)
        for logger.trainer.step, metrics in part:
            logger.on_log(metrics)
        if end:
            logger.on_finish(end)
        logger.on_exit()
    starts = finished(tmp_path / "run", 2)
    assert [start[-1].exit.exit_code for start in starts] == [1, 0]  # the first has failed
    summary = {}
    for record in starts[1]:
        if record.HasField("summary"):
            summary |= values(record.summary.update)
    assert summary["test/accuracy"] == 0.75 and "test/confusion" not in summary
    (first,), (again,) = ([r.run for r in start if r.HasField("run")] for start in starts)
    assert first.project == again.project == "berts" and first.display_name == "run/pretrain"
    assert first.run_id == again.run_id == (folder / "wandb_id").read_text()
    config = values(first.config.update)
    assert config["learning_rate"] == 3e-4 and config["architecture"] == {"hidden_size": 24}
    told = [values(r.history.item) for start in starts for r in start if r.HasField("history")]
    assert [row["_step"] for row in told] == [10, 20, 30]
    assert [row.get("loss") for row in told] == [2.5, 2.0, 1.5]
    assert told[0]["eval_mlm_loss"] == 2.25
    assert told[1]["curves/_type"] == "image-file" and told[1]["curves/width"] == 8
    assert list((tmp_path / "run").glob("wandb/offline-run-*/files/media/images/curves*.png"))
    assert capsys.readouterr().out.count("W&B: ") == 2


def test_a_run_without_a_project_asks_nothing_of_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = PretrainConfig(input="a.txt")
    check_wandb(config)
    assert not any(isinstance(c, WandbLogger) for c in default_callbacks(config, is_chief=True))
    default = default_callbacks(CONFIG, is_chief=True)
    assert any(isinstance(callback, WandbLogger) for callback in default)


@pytest.mark.parametrize("origin", [None, "folder"])
def test_a_package_that_is_not_there(origin, monkeypatch):
    """A folder called wandb, such as W&B itself makes, is none."""
    spec = origin and importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setattr(wandb_logger.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(
        UserError, match=r"--wandb_project needs wandb: pip install 'kbert\[wandb\]"
    ):
        check_wandb(CONFIG)


def begun(folder, run_folder=None, **architecture):
    """A WandbLogger of a run of CONFIG that begins."""
    bert_config = types.SimpleNamespace(to_dict=lambda: architecture)
    logger = WandbLogger()
    logger.trainer = types.SimpleNamespace(
        folder=folder,
        config=CONFIG,
        workload=types.SimpleNamespace(bert_config=bert_config),
        run_dir=types.SimpleNamespace(is_remote=run_folder is None, folder=run_folder),
        step=1,
    )
    logger.on_train_begin()
    return logger


def fake(monkeypatch, init):
    """Puts a wandb in the place of the real one."""
    settings = types.SimpleNamespace(settings=types.SimpleNamespace(mode="offline"))
    module = types.SimpleNamespace(init=init, Settings=dict, setup=lambda: settings)
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_a_failure_is_one_line(tmp_path, monkeypatch, capsys):
    def init(**arguments):
        raise ConnectionError("no route\nto host")

    fake(monkeypatch, init)
    logger = begun(tmp_path)
    for _ in range(3):
        logger.on_log({"loss": 1.0})
    logger.on_exit()
    wanted = "note: logging to W&B stopped: ConnectionError: no route\\nto host\n"
    assert capsys.readouterr().out == wanted


def test_nobody_waits_for_it_long(tmp_path, monkeypatch, capsys):
    asked, never = threading.Event(), threading.Event()
    fake(monkeypatch, lambda **arguments: (asked.set(), never.wait()))
    monkeypatch.setattr(wandb_logger, "MAX_WAIT_SECONDS", 0.1)
    logger = begun(tmp_path)
    logger.on_log({"loss": 1.0})
    logger.on_exit()
    assert asked.wait(60)  # its thread has found the fake, and waits as long as there are tests
    assert (
        "note: the run ends without W&B, which takes longer than 0.1 s" in capsys.readouterr().out
    )


def test_a_run_tells_it_all(offline, corpus, tmp_path, curves, capsys):
    """Its metrics are those of metrics.jsonl; the curves are there in time to be sent."""
    (tmp_path / "heldout.txt").write_text("w1 w2 w3 w4\nw5 w6 w7\n\nw8 w9 w10\nw11 w12\n")
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    (tmp_path / "bert.json").write_text(json.dumps(sizes | {"intermediate_size": 8}))
    settings = {
        **{"input": str(corpus.folder), "eval_input": str(tmp_path / "heldout.txt")},
        **{"bert_config": str(tmp_path / "bert.json"), "max_seq_length": 16, "jit": "off"},
        **{"global_batch_size": 4, "warmup_steps": 1, "train_steps": 4, "log_every_steps": 2},
        **{"eval_every_steps": 4, "eval_examples": 32},
    }
    pretrain(PretrainConfig(**settings, wandb_project="berts"), tmp_path)
    (start,) = finished(tmp_path, 1)
    told = [values(r.history.item) for r in start if r.HasField("history")]
    lines = (tmp_path / "pretrain" / "metrics.jsonl").read_text().splitlines()
    wanted = {}
    for row in map(json.loads, lines):
        wanted.setdefault(row["step"], {}).update(row)
    assert [row["_step"] for row in told] == list(wanted) == [2, 4]
    for row, metrics in zip(told, wanted.values(), strict=True):
        del metrics["step"]
        assert {name: row[name] for name in metrics} == metrics
    assert told[1]["curves/_type"] == "image-file"
    assert (tmp_path / "pretrain" / "curves.png").exists()
    assert "note: W&B" not in capsys.readouterr().out
