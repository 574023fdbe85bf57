"""What a run tells: its pace, its lines, its files."""

import json
import math
import types

import pytest
import tensorflow as tf

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train import callbacks
from kbert.train.callbacks import MetricsFile, ProgressLines, TensorBoard, drop_later_rows
from kbert.train.pretraining import Pretraining
from kbert.train.report import ThroughputMeter, throughput_text, time_text


def test_time():
    assert [time_text(s) for s in (0.4, 61, 3600, 36061)] == ["0:00", "1:01", "1:00:00", "10:01:01"]


def test_the_call_that_compiles_counts_only_where_there_is_no_other():
    pace = ThroughputMeter()
    assert pace.step_seconds == math.inf
    pace.add(10.0, 1, 50.0, 2.5)
    assert pace.read() == (5.0, 10.0, 0.25) and pace.step_seconds == math.inf
    pace.add(1.0, 2, 400.0, 0.5)
    pace.add(3.0, 2, 400.0, 0.5)
    assert pace.step_seconds == 1.5
    assert pace.read() == (200.0, 1.0, 0.25)
    assert pace.read() == (200.0, 1.0, 0.25)  # nothing new


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_clocks_that_stand_still_or_are_set_back(seconds):
    pace = ThroughputMeter()
    for _ in range(2):
        pace.add(seconds, 2, 400.0, -86400.0)
        tokens_per_second, step_seconds, share = pace.read()
        assert tokens_per_second > 0 and step_seconds > 0 and share == 0
    pace.add(2.0, 1, 400.0, 86400.0)
    assert pace.read() == (200.0, 2.0, 1.0)
    pace.add(2.0, 1, 400.0, math.nan)  # no clock at all
    assert math.isnan(pace.read()[2])


def test_a_line_tells_of_skipped_steps_only():
    metrics = {"learning_rate": 0.5, "tokens_per_second": 1234.5, "skipped_steps": 0.0}
    metrics["input_wait"] = 0.05
    assert throughput_text(metrics, 61) == "lr 5.00e-01 | 1,234 tokens/s | ETA 1:01"
    assert throughput_text(metrics | {"skipped_steps": 2.0}, 0).endswith(" | 2 skipped")
    slow = throughput_text(metrics | {"input_wait": 0.126}, 0)
    assert slow.endswith(" | 13% of the time waiting for batches")


def test_the_line_of_a_window_of_steps(capsys):
    names = ("loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "learning_rate")
    metrics = dict.fromkeys(names, 0.5) | {"tokens_per_second": 1234.5, "skipped_steps": 0.0}
    workload = Pretraining(PretrainConfig(input="a.txt"))
    workload.train_steps = 20_000
    line = ProgressLines()
    line.trainer = types.SimpleNamespace(step=1000, workload=workload, eta_seconds=61)
    line.on_log(metrics | {"input_wait": 0.05})
    assert capsys.readouterr().out == (
        "step 1,000/20,000 | loss 0.500 | mlm 0.500 acc 0.500 | nsp 0.500 acc 0.500 | "
        "lr 5.00e-01 | 1,234 tokens/s | ETA 1:01\n"
    )


def test_a_slow_run_has_a_line_after_ten_seconds(capsys, monkeypatch):
    """With the metrics so far, which stay in the window; once."""
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    workload = Pretraining(PretrainConfig(input="a.txt", log_every_steps=100))
    workload.train_steps = 20_000
    names = ("loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")
    workload.objective = types.SimpleNamespace(metrics=lambda sums: dict.fromkeys(names, sums["x"]))
    line = ProgressLines()
    line.trainer = types.SimpleNamespace(
        step=50, workload=workload, config=workload.config, sums_since_log={"x": 0.5}
    )
    line.on_train_begin()
    for line.trainer.step, now[0] in ((51, 109.0), (52, 111.0), (53, 150.0)):
        line.on_step_end()
    assert capsys.readouterr().out == (
        "step 52/20,000 | loss 0.500 | mlm 0.500 acc 0.500 | nsp 0.500 acc 0.500 | "
        "5.5 s per step so far, including compilation\n"
    )


def begun(callback, folder, step=0):
    """A callback of a run that begins at a step."""
    callback.trainer = types.SimpleNamespace(folder=folder, step=step, evaluation_due=False)
    callback.on_train_begin()
    return callback


def test_metrics_that_are_not_finite_are_null(tmp_path):
    writer = begun(MetricsFile(), tmp_path, step=3)
    writer.on_log({"loss": math.nan, "eval_loss": 2.0})
    writer.on_train_end()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 3, "loss": None, "eval_loss": 2.0}


@pytest.mark.parametrize("harmed", [b'{"step": 2, "lo', b'\xff{"step": 2}', b"[2]", b"{}", b""])
def test_a_harmed_line_costs_that_line(tmp_path, harmed):
    rows = [b'{"step": 1, "loss": 2.5}', harmed, b'{"step": 3}', b'{"step": 4}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(rows))
    begun(MetricsFile(), tmp_path, step=3).on_train_end()
    kept = (tmp_path / "metrics.jsonl").read_bytes()
    assert kept == b'{"step": 1, "loss": 2.5}\n{"step": 3}\n'


def test_an_evaluation_that_is_made_again_is_there_once(tmp_path):
    rows = [{"step": 3, "loss": 2.5}, {"step": 3, "eval_loss": 2.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drop_later_rows(path, 3)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    drop_later_rows(path, 3, evaluation_due=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:1]


def test_events_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    writer = begun(TensorBoard(), tmp_path)

    def refuse():
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device\nmore")

    monkeypatch.setattr(writer._events, "flush", refuse)
    with pytest.raises(UserError, match=r"cannot write .*tensorboard: No space left on device"):
        writer.on_log({"loss": 1.0})
