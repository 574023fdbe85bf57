"""Checkpoints: whole or not at all, damaged ones named and passed over."""

import json

import pytest
import tensorflow as tf

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model import BertForPreTraining
from kbert.train.checkpoint import Checkpoints, replace_folder, training_variables
from kbert.train.optimizer import AdamW

CONFIG = BertConfig(
    vocab_size=13,
    hidden_size=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=10,
    max_position_embeddings=9,
)


def variables(value):
    return {
        "a/b": tf.Variable([value, 2.0]),
        "seed/0": tf.Variable([1, int(value)], dtype=tf.uint32),
    }


def saved(tmp_path, steps, keep=9):
    checkpoints = Checkpoints(tmp_path / "checkpoint", keep)
    for step in steps:
        checkpoints.save(step, variables(float(step)), {"note": step})
    return checkpoints


def test_round_trip(tmp_path):
    checkpoints = saved(tmp_path, [7])
    state = checkpoints.newest(print)
    assert (state["step"], state["note"]) == (7, 7)
    fresh = variables(0.0)
    checkpoints.restore(7, fresh)
    assert fresh["a/b"].numpy().tolist() == [7.0, 2.0]
    assert fresh["seed/0"].numpy().tolist() == [1, 7]


def test_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "none", 1).newest(print) is None


def test_keeps_the_newest(tmp_path):
    assert saved(tmp_path, [1, 2, 3, 4], keep=2).steps() == [3, 4]


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, name, damage):
    checkpoints = saved(tmp_path, [1, 2])
    path = checkpoints.path(2) / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        # A bit of the state file may hit a value that means nothing; half of it never parses.
        path.write_bytes(
            data if damage == "flip" and name != "state.json" else data[: len(data) // 2]
        )
    lines = []
    assert checkpoints.newest(lines.append)["step"] == 1
    assert len(lines) == 1 and "step_00000002 is damaged" in lines[0]


def test_a_damaged_newer_checkpoint_gives_way_to_a_good_one(tmp_path):
    checkpoints = saved(tmp_path, [500, 1000], keep=2)
    (checkpoints.path(1000) / "state.json").write_text("[]")
    lines = []
    one = Checkpoints(checkpoints.folder, keep=1)
    assert one.newest(lines.append)["step"] == 500 and len(lines) == 1
    one.save(600, variables(6.0), {})
    assert one.steps() == [600]


def test_no_run_starts_from_scratch_over_damaged_checkpoints(tmp_path):
    checkpoints = saved(tmp_path, [1, 2])
    for step in (1, 2):
        (checkpoints.path(step) / "variables.index").unlink()
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        checkpoints.newest(print)


def test_a_half_written_checkpoint_is_never_taken_and_cleared_away(tmp_path):
    checkpoints = saved(tmp_path, [1])
    partial = checkpoints.folder / "partial-1"
    partial.mkdir()
    (partial / "state.json").write_text(json.dumps({"step": 5, "files": {}}))
    assert checkpoints.newest(print)["step"] == 1
    checkpoints.save(2, variables(2.0), {})
    assert not partial.exists()


def test_other_variables_are_refused(tmp_path):
    checkpoints = saved(tmp_path, [3])
    with pytest.raises(UserError, match=r"step_00000003 does not fit the model or the optimizer"):
        checkpoints.restore(3, {"a/b": tf.Variable([0.0, 0.0, 0.0])})


def test_training_variables_hold_seeds_and_slots_by_stable_names():
    def names_and_values():
        model = BertForPreTraining(CONFIG)
        optimizer = AdamW(0.1)
        optimizer.build(model.trainable_variables)
        return training_variables(model, optimizer)

    first, second = names_and_values(), names_and_values()
    assert list(first) == list(second)
    assert sum(name.startswith("seed/") for name in first) == 4  # embeddings, weights, two outputs
    weights = sum(name.startswith("model/") for name in first)
    # two slots per weight, the iteration count and the learning rate
    assert sum(name.startswith("optimizer/") for name in first) == 2 * weights + 2
    assert all(isinstance(value, tf.Variable) for value in first.values())


def test_replace_folder_keeps_the_old_one_when_writing_fails(tmp_path):
    target = tmp_path / "best"
    replace_folder(target, lambda path: (path / "x").write_text("1"))
    with pytest.raises(RuntimeError):
        replace_folder(target, lambda path: (_ for _ in ()).throw(RuntimeError()))
    assert (target / "x").read_text() == "1"
    replace_folder(target, lambda path: (path / "x").write_text("2"))
    assert (target / "x").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    target.rename(tmp_path / ".best.old")  # killed between the two renames
    with pytest.raises(RuntimeError):
        replace_folder(target, lambda path: (_ for _ in ()).throw(RuntimeError()))
    assert (target / "x").read_text() == "2"
