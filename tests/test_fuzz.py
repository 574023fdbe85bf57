"""A few changed inputs for each parser of files and bytes from outside, always the same ones.

`python -m tests.fuzz` tries as many as there is time for.
"""

import pathlib
import random
import subprocess
import sys

import pytest
from fuzz.__main__ import load_targets
from fuzz.harness import MAX_MEMORY, Fault, Target, changed_seeds, checked, mutated
from fuzz.regressions import REGRESSIONS
from warm_python import PYTHON

from kbert.errors import UserError

TARGETS = load_targets()
INPUTS = {
    "vocabulary": 12,
    "text": 60,
    "tokenizer": 25,
    "corpus": 12,
    "config": 40,
    "weights_keras_hub": 50,
}


@pytest.mark.parametrize("name", TARGETS)
def test_changed_seeds(name, monkeypatch):
    """Each is read, or refused in a line, in little time and memory."""
    monkeypatch.setattr("fuzz.harness.MAX_SECONDS", 60)  # the machine may have other work, too
    target = TARGETS[name]
    with checked(target) as check:
        assert check(target.seeds()[0])
        for data in [*target.seeds(), *changed_seeds(target, INPUTS.get(name, 150))]:
            check(data)
        for other, data in REGRESSIONS:
            if other == name:
                check(data)


def test_regressions_are_of_targets():
    assert {name for name, _ in REGRESSIONS} <= set(TARGETS)


def fails(data):
    raise {
        b"user": UserError("a line"),
        b"other": KeyError("x"),
        b"many": UserError("x" * 9999),
    }[data]


def target_of(parse):
    return Target("some", parse, lambda: [b"x"])


def test_what_a_fault_is():
    with checked(target_of(fails)) as check:
        assert check(b"user") is False and check(b"many") is False
        with pytest.raises(Fault, match="some: KeyError: 'x'"):
            check(b"other")


def test_messages_of_many_lines_are_faults(monkeypatch):
    monkeypatch.setattr(UserError, "__str__", lambda self: "two\nlines")
    with checked(target_of(fails)) as check, pytest.raises(Fault, match="a message of 9 char"):
        check(b"user")


ENDLESS = """
from fuzz import harness
from test_fuzz import target_of

def endless(data):
    while True:
        pass

harness.MAX_SECONDS = 0.2
try:
    with harness.checked(target_of(endless)) as check:
        check(b"")
except harness.Fault as fault:
    print(fault)
"""


def test_too_much_time_is_a_fault():
    """In a process of its own: an exception raised by a signal has crashed large ones."""
    folder = pathlib.Path(__file__).parent
    done = subprocess.run([PYTHON, "-c", ENDLESS], cwd=folder, capture_output=True, text=True)
    assert "not done after 0.2 s" in done.stdout, done.stderr


def test_too_much_memory_is_a_fault():
    target = target_of(lambda data: bytearray(b"x" * 2 * MAX_MEMORY))
    with checked(target) as check, pytest.raises(Fault, match=r"\d+ MB of memory"):
        check(b"")


def test_changes_are_always_the_same():
    seeds = [b'{"a": 1, "b": [true, "text"]}', b"1 2"]
    found = [mutated(seeds[0], seeds, random.Random(i)) for i in range(300)]
    assert found == [mutated(seeds[0], seeds, random.Random(i)) for i in range(300)]
    assert len(set(found)) > 200 and max(map(len, found)) <= 10_000


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
def test_the_program(tmp_path, plain):
    if not plain:
        pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", "labels", "--seconds=5"]
    command += [f"--folder={tmp_path}"] + ["--plain"] * plain
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "no fault" in done.stdout if plain else "stat::number_of_executed_units" in done.stderr
