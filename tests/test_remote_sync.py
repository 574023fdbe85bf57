"""Runs whose folder is on remote storage; TensorFlow's `ram://` stands for it."""

import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf
from faulty import FaultyFiles, unavailable
from run_files import weights_of

from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.train import callbacks, pretrain, remote_sync, trainer
from kbert.utils import remote_storage


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Faulty file systems, no waits, and local copies under `tmp_path`."""
    found = FaultyFiles()
    monkeypatch.setattr(remote_storage, "gfile", found)
    monkeypatch.setattr(remote_storage, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(remote_sync.tempfile, "tempdir", str(tmp_path))
    return found


@pytest.fixture
def url(request):
    return f"ram://{request.node.name}/run"


@pytest.fixture
def settings(tmp_path, corpus):
    (tmp_path / "tiny.yaml").write_text(
        "num_hidden_layers: 1\nhidden_size: 8\nnum_attention_heads: 2\nintermediate_size: 8\n"
        "max_position_embeddings: 24\n"
    )
    return {
        "input": str(corpus.folder.parent / "b.text"),
        "vocab_file": str(corpus.folder / "vocab.txt"),
        "eval_input": str(corpus.folder.parent / "a.text"),
        "eval_examples": 32,
        "bert_config": str(tmp_path / "tiny.yaml"),
        "max_seq_length": 16,
        "global_batch_size": 4,
        "train_steps": 8,
        "warmup_steps": 2,
        "log_every_steps": 1,
        "save_every_steps": 2,
        "eval_every_steps": 4,
        "keep_checkpoints": 2,
    }


def names(folder):
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))


def stop_at(monkeypatch, step):
    """Ends a run as a signal does."""
    take = trainer.Trainer.take_steps

    def take_steps(self, batches, count):
        take(self, batches, count)
        if self.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "take_steps", take_steps)


def fetched(url, folder):
    """A local copy of a remote folder of files."""
    pathlib.Path(folder).mkdir()
    for name in names(url):
        with tf.io.gfile.GFile(f"{url}/{name}", "rb") as file:
            (pathlib.Path(folder) / name).write_bytes(file.read())
    return folder


def test_a_run_goes_on_from_what_was_sent(files, url, settings, tmp_path, monkeypatch, capsys):
    config = PretrainConfig(**settings)
    pretrain(config, tmp_path / "local")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, url)
    assert names(f"{url}/pretrain/checkpoint") == ["step_00000002", "step_00000004"]
    capsys.readouterr()
    pretrain(config, url)
    printed = capsys.readouterr().out
    assert f"starting from step 4 of {url}/pretrain/checkpoint/step_00000004\n" in printed
    assert f"done: weights in {url}/pretrain/final, metrics in {url}/pretrain/metrics" in printed
    assert "preparing" not in printed
    assert names(f"{url}/pretrain/checkpoint") == ["step_00000006", "step_00000008"]
    for name in ("best", "final"):
        theirs = weights_of(fetched(f"{url}/pretrain/{name}", tmp_path / name))
        ours = weights_of(tmp_path / "local/pretrain" / name)
        assert all(np.array_equal(theirs[key], ours[key]) for key in ours)
    with tf.io.gfile.GFile(f"{url}/pretrain/run.flags") as file:
        assert f"--output_dir={url}\n" in file.read()
    assert not list(tmp_path.glob("kbert-run-*"))


@pytest.mark.slow
def test_a_storage_that_is_away_for_a_while(files, url, settings, capsys, monkeypatch):
    """Training goes on; what could not be sent goes with the next checkpoint."""
    save = callbacks.ModelCheckpoint.on_save

    def save_and_fail(self):
        files.always["copy"] = unavailable() if self.trainer.step in (2, 4) else None
        save(self)
        self.trainer.background.wait()

    monkeypatch.setattr(callbacks.ModelCheckpoint, "on_save", save_and_fail)
    pretrain(PretrainConfig(**settings | {"keep_checkpoints": 4}), url)
    printed = capsys.readouterr().out
    assert printed.count("note: cannot copy ") == 2
    assert (
        "gave up after 6 attempts; the last error: the service is away. The next check" in printed
    )
    steps = [f"step_{step:08d}" for step in (2, 4, 6, 8)]
    assert names(f"{url}/pretrain/checkpoint") == steps


@pytest.mark.slow
def test_a_storage_that_is_away_at_the_end(files, url, settings, tmp_path, monkeypatch):
    """Nothing is lost: the error names the local copy."""
    replace = remote_sync.RemoteRunDir.send_all

    def send_all(self, path):
        if (self.folder / "pretrain/final").exists():
            files.always["copy"] = unavailable()
        return replace(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(remote_sync.RemoteRunDir, "send_all", send_all)
        with pytest.raises(
            UserError, match=r"gave up .* files that were not uploaded are in .*kbert-run"
        ):
            pretrain(PretrainConfig(**settings), url)
    (folder,) = tmp_path.glob("kbert-run-*")
    assert (folder / "pretrain/final/weights.h5").exists()
    files.always.clear()
    pretrain(PretrainConfig(**settings), url)  # goes on from the last checkpoint
    assert "weights.h5" in names(f"{url}/pretrain/final")


@pytest.mark.slow
def test_what_is_not_whole_is_not_taken(files, url, settings, capsys, monkeypatch):
    config = PretrainConfig(**settings | {"keep_checkpoints": 4})
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, url)
    folder = f"{url}/pretrain/checkpoint"
    tf.io.gfile.remove(f"{folder}/step_00000006/state.json")  # it arrives last
    with tf.io.gfile.GFile(f"{folder}/step_00000004/optimizer.h5", "rb") as file:
        damaged = bytearray(file.read())
    damaged[len(damaged) // 2] ^= 1
    with tf.io.gfile.GFile(f"{folder}/step_00000004/optimizer.h5", "wb") as file:
        file.write(bytes(damaged))
    capsys.readouterr()
    pretrain(config, url)
    printed = capsys.readouterr().out
    assert "step_00000004 is damaged (the checksum of optimizer.h5 differs). Using" in printed
    assert f"starting from step 2 of {folder}/step_00000002\n" in printed


def test_a_storage_that_this_tensorflow_has_not(settings):
    with pytest.raises(UserError, match=r"^cannot access nfs://x/run/.*does not support nfs://"):
        pretrain(PretrainConfig(**settings), "nfs://x/run")


def kill_at(monkeypatch, files, number):
    """Ends the process, as kill -9 does, at a call that changes the storage; False = it had none.

    Nothing that the process would do at its end is done.
    """
    counted = {"calls": 0}

    def counting(name):
        real = getattr(FaultyFiles, name, None) or FaultyFiles.__getattr__(files, name)
        call = real.__get__(files) if name == "copy" else real

        def killed(*args, **kwargs):
            counted["calls"] += 1
            if counted["calls"] >= number:
                raise SystemExit("killed")
            return call(*args, **kwargs)

        return killed

    for name in ("copy", "remove", "rmtree"):
        monkeypatch.setattr(files, name, counting(name), raising=False)


def check_kills(files, url, settings, folder, monkeypatch, numbers):
    """Kills runs, each at another call, and ends them; returns the first number of no call."""
    config = PretrainConfig(**settings)
    pretrain(config, folder / "local")
    ours = weights_of(folder / "local/pretrain/final")
    for number in numbers:
        there = f"{url}-{number}"
        with monkeypatch.context() as patch:
            kill_at(patch, files, number)
            try:
                pretrain(config, there)
            except SystemExit:
                pass
            else:
                return number
        pretrain(config, there)
        theirs = weights_of(fetched(f"{there}/pretrain/final", folder / f"final-{number}"))
        assert all(np.array_equal(theirs[key], ours[key]) for key in ours), number
        assert names(f"{there}/pretrain/checkpoint") == ["step_00000006", "step_00000008"]


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_sends(files, url, settings, tmp_path, monkeypatch):
    """In a checkpoint."""
    assert check_kills(files, url, settings, tmp_path, monkeypatch, [20]) is None


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_time(files, url, settings, tmp_path, monkeypatch):
    assert check_kills(files, url, settings, tmp_path, monkeypatch, range(1, 999)) > 60


@pytest.mark.slow
def test_text_that_changed_and_was_half_sent(files, url, settings, tmp_path, monkeypatch, capsys):
    """An old manifest over new files would end every run that follows."""
    text = tmp_path / "text.txt"
    text.write_bytes(pathlib.Path(settings["input"]).read_bytes())
    config = PretrainConfig(**settings | {"input": str(text)})
    pretrain(config, url)
    text.write_bytes(text.read_bytes() * 2)
    longer = PretrainConfig(**settings | {"input": str(text), "train_steps": 10})
    with monkeypatch.context() as patch:
        kill_at(patch, files, 30)
        with pytest.raises(SystemExit):
            pretrain(longer, url)
    capsys.readouterr()
    pretrain(longer, url)
    assert "done: weights in" in capsys.readouterr().out
