"""Two processes never write the same folder."""

import errno
import os
import subprocess
import sys

import pytest

from kbert.corpus import prepare
from kbert.errors import UserError
from kbert.serving import export
from kbert.utils import locks
from kbert.utils.locks import folder_lock, target_lock

HOLD = """
import sys, time
from kbert.utils.locks import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"run is in use by process {first.pid} on .*Wait"),
            folder_lock(tmp_path / "run"),
        ):
            pass
    finally:
        first.kill()  # not a chance to tidy up
        first.wait()
    with folder_lock(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run/lock").read_text()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"cannot lock .*lock: No locks available. Choose a folder"),
        folder_lock(tmp_path),
    ):
        pass


HOLD_TARGET = """
import sys, time
from kbert.utils.locks import target_lock
with target_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_made_by_one_process_at_a_time(tmp_path):
    target = tmp_path / "models" / "1"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD_TARGET, target], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError) as caught,
            target_lock(target),
        ):
            pass
        assert str(caught.value).startswith(f"{target} is in use by process {first.pid} on ")
        assert str(caught.value).endswith(". Wait for it, stop it, or choose another --output_dir.")
    finally:
        first.kill()
        first.wait()
    with target_lock(target):
        assert os.listdir(target.parent) == [".1.lock"]
    assert os.listdir(target.parent) == []


def test_a_lock_that_was_removed_before_it_was_held_is_none(tmp_path, monkeypatch):
    """The process before lets go of it and removes it between the two calls."""
    flock, path = locks.fcntl.flock, tmp_path / ".1.lock"

    def flock_late(file, operation):
        monkeypatch.undo()
        path.unlink()
        flock(file, operation)

    monkeypatch.setattr(locks.fcntl, "flock", flock_late)
    with target_lock(tmp_path / "1"):
        assert str(os.getpid()) in path.read_text()


def test_programs_hold_the_lock_of_what_they_make(tmp_path, vocab_file):
    text = tmp_path / "text.txt"
    text.write_text("the cat\n\na dog\n")
    target = tmp_path / "target"
    (tmp_path / ".target.partial").mkdir()  # of the process that holds the lock
    with target_lock(target):
        with pytest.raises(UserError, match=rf"{target} is in use by process {os.getpid()} on "):
            prepare(str(text), target, vocab_file)
        assert (tmp_path / ".target.partial").is_dir()
        with pytest.raises(UserError, match="is in use by"), export._new_folder(target):
            pass
    prepare(str(text), target, vocab_file)
