"""Several workers: who they are, and that they compute what one device computes."""

import json
import os
import signal
import socket
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from run_files import metrics_of, weights_of
from warm_python import PYTHON
from worker_runs import example_ids, launch

from kbert.data.input_context import batch_number
from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train import pretrain
from kbert.train.workers import Workers, read_cluster

STEPS, BATCH = 24, 16


def cluster(kind="worker", index=0, **tasks):
    tasks = tasks or {"worker": ["a:1", "b:1"]}
    return {"TF_CONFIG": json.dumps({"cluster": tasks, "task": {"type": kind, "index": index}})}


def test_who_a_worker_is():
    assert read_cluster(cluster(index=1)) == (1, ("a:1", "b:1"))
    with_chief = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    assert read_cluster(cluster("chief", 0, **with_chief)) == (0, ("c:1", "a:1", "b:1"))
    assert read_cluster(cluster("worker", 1, **with_chief)) == (2, ("c:1", "a:1", "b:1"))
    assert read_cluster(cluster(worker=["a:1"])) == (0, ("a:1",))
    assert read_cluster(cluster(worker=["[::1]:65535"])) == (0, ("[::1]:65535",))


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "not set"),
        ({"TF_CONFIG": "worker"}, r"'worker' \(Expecting value"),
        ({"TF_CONFIG": "[]"}, r"'\[\]' \(list indices"),
        ({"TF_CONFIG": '{"cluster": {}}'}, r"lacks 'task'"),
        (cluster(index=2), "the cluster has no worker 2"),
        (cluster(index=-1), "the cluster has no worker -1"),
        (cluster("evaluator"), "evaluator is not a training task"),
        (cluster(worker=["a:1"], ps=["b:1"]), "ps is not a training task"),
        (cluster(worker="a:1"), "worker must be a list of HOST:PORT; it is 'a:1'"),
        (cluster(worker={"0": "a:1"}), "worker must be a list of HOST:PORT; it is {'0': 'a:1'}"),
        (cluster(worker=["a", "b:1"]), "worker must be a list of HOST:PORT; it has 'a'"),
        (cluster(worker=["a:1", "b:"]), "worker must be a list of HOST:PORT; it has 'b:'"),
        (cluster(worker=[":1"]), "worker must be a list of HOST:PORT; it has ':1'"),
        (cluster(worker=["a:0"]), "worker must be a list of HOST:PORT; it has 'a:0'"),
        (cluster(worker=["a:65536"]), "worker must be a list of HOST:PORT; it has 'a:65536'"),
        (cluster(worker=[1]), "worker must be a list of HOST:PORT; it has 1"),
        (
            cluster(worker=["a:1"], chief=[["c:1"]]),
            r"chief must be a list of HOST:PORT; it has \['c:1'\]",
        ),
    ],
)
def test_a_cluster_that_cannot_be(environ, reason):
    begin = "with --distribution=multi_worker, TF_CONFIG must contain the cluster and "
    with pytest.raises(UserError, match=rf"^{begin}.*{reason}.*Set it"):
        read_cluster(environ)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--distribution=multi_worker"],
            "with --distribution=multi_worker, TF_CONFIG must contain the cluster and this "
            "worker's task; it is not set",
        ),
        (["--distribution=tpu"], "no TPU can be reached ("),
    ],
)
def test_programs_refuse_in_one_line(flags, message, tmp_path):
    command = [PYTHON, "-m", "kbert.pretrain", "--input=sample:train", *flags]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/run"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [[], ["--cpu_devices=2"]])
def test_a_worker_that_cannot_be_is_refused_in_one_line(flags, tmp_path):
    """Its port is in use; or, without a look at the port, it asks for two devices."""
    command = [PYTHON, "-m", "kbert.pretrain", "--input=sample:train", *flags]
    command += ["--distribution=multi_worker", f"--output_dir={tmp_path}/run"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environ = os.environ | cluster(worker=[address])
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
    wanted = (
        f"error: worker 0 of 1 cannot join the others (Could not start gRPC server). Check that no "
        f"other program listens on the port of {address}, and that the hosts in TF_CONFIG can "
        f"reach each other; then restart all workers.\n"
    )
    if flags:
        wanted = "error: cpu_devices must be 1 with --distribution=multi_worker, where each "
        wanted += "worker uses its whole CPU; got 2. Start more workers.\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_shares_are_the_batches_of_one_worker_dealt_out():
    assert [batch_number(None, i) for i in range(5)] == [0, 1, 2, 3, 4]
    for workers, replicas in ((2, 1), (2, 2), (3, 4)):
        contexts = [
            tf.distribute.InputContext(workers, worker, workers * replicas)
            for worker in range(workers)
        ]
        steps = [
            [batch_number(c, step * replicas + i) for c in contexts for i in range(replicas)]
            for step in range(3)
        ]
        assert np.ravel(steps).tolist() == list(range(3 * workers * replicas))


def test_a_single_worker_waits_for_nobody():
    workers = Workers(tf.distribute.get_strategy())
    assert workers.is_chief and workers.count == 1
    assert workers.sum([1, 2.5]).tolist() == [1, 2.5]
    workers.check_same(flags={"a": 1})
    with pytest.raises(tf.errors.UnavailableError), workers.report_lost_workers():
        raise tf.errors.UnavailableError(None, None, "the disk of somebody else")


@pytest.fixture
def settings(tmp_path, corpus):
    architecture = tmp_path / "tiny.yaml"
    architecture.write_text(
        "num_hidden_layers: 1\nhidden_size: 12\nnum_attention_heads: 3\n"
        "intermediate_size: 20\nmax_position_embeddings: 24\n"
        "hidden_dropout_prob: 0.3\nattention_probs_dropout_prob: 0.3\n"
    )
    return {
        "input": str(corpus.folder),
        "eval_input": str(corpus.folder.parent / "a.text"),
        "eval_examples": 32,
        "eval_every_steps": 12,
        "bert_config": str(architecture),
        "max_seq_length": 20,
        "global_batch_size": BATCH,
        "train_steps": STEPS,
        "warmup_steps": 4,
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "log_every_steps": 1,
        "save_every_steps": 7,
        "keep_checkpoints": 9,
    }


def assert_same_run(one, other):
    """Equal but for rounding: float32 sums in another order."""
    rows, others = metrics_of(one), metrics_of(other)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, its in zip(rows, others, strict=True):
        assert row.keys() == its.keys()
        for name in ("loss", "mlm_loss", "nsp_loss", "eval_mlm_loss"):
            assert abs(row.get(name, 0) - its.get(name, 0)) < 1e-6, (row["step"], name)
    weights, its = (weights_of(f"{run}/pretrain/final") for run in (one, other))
    assert max(np.abs(weights[name] - its[name]).max() for name in weights) < 1e-6


def check_ids(file, first, steps):
    """Step s saw the examples [s * BATCH, (s + 1) * BATCH), as it does on one device."""
    expected = np.arange(first * BATCH, (first + steps) * BATCH).reshape(steps, BATCH)
    np.testing.assert_array_equal(example_ids(file, first, steps, BATCH), expected)


def test_two_workers_with_two_devices_each_and_a_stop(settings, tmp_path):
    """A signal to one of them stops all; one device goes on, and it is one run."""
    pretrain(PretrainConfig(**settings), tmp_path / "one")
    several = tmp_path / "several"
    chief, other = launch(2, several, settings, devices=2, stop_at=10, ids=str(tmp_path / "ids"))
    assert chief[0] == other[0] == 128 + signal.SIGTERM, (chief, other)
    assert "devices: 4 CPUs of 2 workers, 4 examples each, XLA off" in chief[1]
    assert other[1].startswith("worker 1 of 2, ") and other[1].count("\n") == 1  # nothing else
    stopped = metrics_of(several)[-1]["step"]
    assert f"stopped at step {stopped}; the checkpoint is saved. Resume with:" in chief[1]
    assert 10 < stopped < STEPS
    check_ids(tmp_path / "ids", 0, stopped)
    pretrain(PretrainConfig(**settings), several)
    assert_same_run(tmp_path / "one", several)


@pytest.mark.slow
def test_runs_go_on_with_any_number_of_workers(settings, tmp_path):
    """1, 2 and 4 workers, in every order, each from where the one before was stopped."""
    pretrain(PretrainConfig(**settings), tmp_path / "one")
    for name, counts in {"up": (1, 2, 4), "down": (4, 2, 1), "whole": (4,)}.items():
        run, first = tmp_path / name, 0
        for i, count in enumerate(counts):
            last = i == len(counts) - 1
            ids = tmp_path / f"{name}-{i}"
            stop = {} if last else {"stop_at": first + 5}
            for status, _, errors in launch(count, run, settings, ids=str(ids), **stop):
                assert status == (0 if last else 128 + signal.SIGTERM), errors
            step = STEPS if last else metrics_of(run)[-1]["step"]
            assert step > first
            check_ids(ids, first, step - first)
            first = step
        assert_same_run(tmp_path / "one", run)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_worker_ends_the_others_in_one_line(settings, tmp_path, victim):
    """And the run goes on from the last checkpoint, with fewer of them."""
    pretrain(PretrainConfig(**settings), tmp_path / "one")
    run = tmp_path / "run"
    found = launch(2, run, settings, kill_at=10, victim=victim)
    assert found[victim][0] == -9
    status, _, errors = found[1 - victim]
    assert status == 2, errors
    assert f"error: worker {1 - victim} of 2 lost the connection to another worker, whose" in errors
    pretrain(PretrainConfig(**settings), run)
    assert_same_run(tmp_path / "one", run)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 5}, {"optimizer": "lamb"}])
def test_workers_that_differ_are_refused(settings, tmp_path, monkeypatch, change):
    """All of them end, and say why."""
    import worker_runs

    run = worker_runs.subprocess.run

    def with_other_settings(command, **kwargs):
        if json.loads(kwargs["env"]["TF_CONFIG"])["task"]["index"] == 1:
            command = [*command[:3], json.dumps(settings | change), *command[4:]]
        return run(command, **kwargs)

    monkeypatch.setattr(worker_runs.subprocess, "run", with_other_settings)
    for status, _, errors in launch(2, tmp_path / "run", settings):
        assert status == 2
        assert "error: the workers do not have the same settings. Start all of them" in errors
