"""Checkpoints: whole or not at all, damaged ones named and passed over."""

import errno
import json
import threading

import h5py
import keras
import numpy as np
import pytest

from kbert.errors import UserError
from kbert.model.weights.native import write_arrays
from kbert.train import checkpoint
from kbert.train.checkpoint import (
    BackgroundWriter,
    Checkpoints,
    is_checkpoint,
    restore_arrays,
    verified_state,
)

pytestmark = pytest.mark.smoke


def writer(value):
    return lambda folder: write_arrays(folder / "arrays.h5", {"a/b": np.full(99, value)})


def saved(tmp_path, steps, keep=9):
    checkpoints = Checkpoints(tmp_path / "checkpoint", keep)
    for step in steps:
        checkpoints.save(step, {"note": step / 3}, writer(step))
    return checkpoints


def test_round_trip(tmp_path):
    checkpoints = saved(tmp_path, [7])
    state = checkpoints.newest(print)
    assert (state["step"], state["note"]) == (7, 7 / 3)
    path = checkpoints.path(7)
    assert is_checkpoint(path) and not is_checkpoint(tmp_path) and verified_state(path) == state
    variable = keras.Variable(np.zeros(99), dtype="float32")
    restore_arrays(path / "arrays.h5", {"a/b": variable})
    assert (variable.numpy() == 7).all()


def test_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none", 1)
    assert checkpoints.newest(print) is None and checkpoints.last_good is None


def test_keeps_the_newest(tmp_path):
    assert saved(tmp_path, [1, 2, 3, 4], keep=2).steps() == [3, 4]


def test_what_is_too_old_is_cleared_away(tmp_path):
    """Newer ones stay: where they are damaged, only the next save tells that they are too."""
    checkpoints = Checkpoints(tmp_path / "none", 2)
    checkpoints.delete_old(0)
    checkpoints = saved(tmp_path, [1, 2, 3, 4])
    (checkpoints.path(1) / "arrays.h5").unlink()  # its deletion was cut off
    (checkpoints.folder / ".step_00000077.partial").mkdir()
    Checkpoints(checkpoints.folder, 2).delete_old(3)
    assert sorted(path.name[-1] for path in checkpoints.folder.iterdir()) == ["2", "3", "4"]


@pytest.mark.parametrize("name", ["arrays.h5", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, name, damage):
    checkpoints = saved(tmp_path, [1, 2])
    path = checkpoints.path(2) / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[data.index(b"0.6666") if name == "state.json" else len(data) // 2] ^= 1
        path.write_bytes(data)
    lines = []
    assert checkpoints.newest(lines.append)["step"] == 1
    assert len(lines) == 1 and "step_00000002 is damaged" in lines[0]


@pytest.mark.parametrize("text", ["[]", "{}", "", '{"format": 3, "step": 2}', "[" * 9999])
def test_a_state_file_that_is_none(tmp_path, text):
    checkpoints = saved(tmp_path, [1, 2])
    (checkpoints.path(2) / "state.json").write_text(text)
    lines = []
    assert checkpoints.newest(lines.append)["step"] == 1 and len(lines) == 1


def test_a_checkpoint_of_another_version_is_neither_taken_nor_passed_over(tmp_path):
    checkpoints = saved(tmp_path, [1, 2])
    (checkpoints.path(2) / "state.json").write_text('{"format": 4}')
    with pytest.raises(
        UserError,
        match=r"step_00000002/state.json was written by a newer kbert .format 4; .*reads 3",
    ):
        checkpoints.newest(print)


def test_a_flipped_bit_in_the_format_is_damage(tmp_path):
    checkpoints = saved(tmp_path, [1, 2])
    path = checkpoints.path(2) / "state.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    lines = []
    assert checkpoints.newest(lines.append)["step"] == 1
    assert len(lines) == 1 and "the checksum of state.json differs" in lines[0]


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [1, 2])

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint, "sha256_of", refuse)
    with pytest.raises(UserError, match=r"cannot read .*step_00000002: Permission denied"):
        checkpoints.newest(print)


def test_a_damaged_newer_checkpoint_gives_way_to_a_good_one(tmp_path):
    checkpoints = saved(tmp_path, [500, 1000], keep=2)
    (checkpoints.path(1000) / "state.json").write_text("[]")
    lines = []
    one = Checkpoints(checkpoints.folder, keep=1)
    assert one.newest(lines.append)["step"] == 500 and len(lines) == 1
    one.save(600, {}, writer(6))
    assert one.steps() == [600]


def test_no_run_starts_from_scratch_over_damaged_checkpoints(tmp_path):
    checkpoints = saved(tmp_path, [1, 2])
    for step in (1, 2):
        (checkpoints.path(step) / "arrays.h5").unlink()
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        checkpoints.newest(print)


def test_a_half_written_checkpoint_is_never_taken_and_cleared_away(tmp_path):
    checkpoints = saved(tmp_path, [1])
    partial = checkpoints.folder / ".step_00000001.partial"
    partial.mkdir()
    (partial / "state.json").write_text(json.dumps({"step": 5, "files": {}}))
    assert checkpoints.newest(print)["step"] == 1
    checkpoints.save(2, {}, writer(2))
    assert not partial.exists()


def full_disk(folder):
    (folder / "some").write_text("x")
    raise OSError(errno.ENOSPC, "long text of HDF5\nover lines")


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint", 9)
    with pytest.raises(UserError, match=r"it resumes from the start\."):
        checkpoints.save(1, {}, full_disk)
    checkpoints.save(1, {}, writer(1))
    checkpoints.save(3, {}, writer(3))
    (checkpoints.path(3) / "arrays.h5").unlink()
    checkpoints.newest([].append)
    with pytest.raises(UserError) as caught:
        checkpoints.save(2, {}, full_disk)
    assert str(caught.value) == (
        f"cannot write the checkpoint of step 2 in {checkpoints.folder}: No space left on device. "
        f"Fix this and run the same command again: it resumes from {checkpoints.path(1)}, which "
        f"is complete."
    )
    assert not list(checkpoints.folder.glob(".*"))
    assert checkpoints.newest([].append)["step"] == 1


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    write_arrays(tmp_path / "x.h5", {"a": np.zeros((2, 3)), "b": np.zeros(2)})
    a, b, c = (keras.Variable(np.ones(shape)) for shape in ((2, 3), (2,), (2,)))
    with pytest.raises(UserError, match=r"a has shape \(2, 3\), expected \(2,\)"):
        restore_arrays(tmp_path / "x.h5", {"a": b})
    with pytest.raises(UserError, match=r"c has shape none, expected \(2,\)"):
        restore_arrays(tmp_path / "x.h5", {"a": a, "c": c})
    restore_arrays(tmp_path / "x.h5", {"b": b, "c": c}, optional=["c"])
    assert b.numpy().tolist() == [0, 0] and c.numpy().tolist() == [1, 1]


def test_integers_stay_exact(tmp_path):
    write_arrays(tmp_path / "x.h5", {"iterations": np.int64(2**40 + 1)})
    variable = keras.Variable(0, dtype="int64", trainable=False)
    restore_arrays(tmp_path / "x.h5", {"iterations": variable})
    assert int(variable) == 2**40 + 1
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["iterations"].dtype == np.int64


def test_the_background_writer_works_while_the_caller_goes_on():
    go_on, done = threading.Event(), []
    with BackgroundWriter() as background:
        background.start(lambda: (go_on.wait(10), done.append(1)))
        background.check()  # returns at once
        assert not done
        go_on.set()
        background.start(lambda: done.append(2))  # waits for the first
        assert done[0] == 1
    assert done == [1, 2]


def test_the_background_writer_raises_what_a_job_raised():
    def fail():
        raise UserError("disk full")

    with pytest.raises(UserError, match="disk full"), BackgroundWriter() as background:
        background.start(fail)
    with BackgroundWriter() as background:
        background.start(fail)
        with pytest.raises(UserError, match="disk full"):
            background.start(lambda: None)
    # an error of the body is not hidden by one of a job
    with pytest.raises(KeyError), BackgroundWriter() as background:
        background.start(fail)
        raise KeyError
