"""The flagfiles and architectures in configs/."""

import pathlib
import re
import subprocess

import pytest
from warm_python import PYTHON

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted((ROOT / "configs").glob("*.flags"))
READ = (
    "import sys; from absl import flags; from kbert import settings;"
    "from kbert.utils.flags import define, read;"
    "flags.DEFINE_string('output_dir', None, ''); config = getattr(settings, sys.argv[1]);"
    "define(config); flags.FLAGS(sys.argv[1:]); print(read(config))"
)


def program_of(path):
    """The program that a flagfile is for, and the class of its settings."""
    tuned = path.stem.startswith("finetune_")
    return ("finetune", "FinetuneConfig") if tuned else ("pretrain", "PretrainConfig")


def settings_of(path):
    arguments = [program_of(path)[1], "--init_from=x", f"--flagfile={path}"]
    done = subprocess.run([PYTHON, "-c", READ, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_recipes_are_there():
    names = {path.stem for path in FLAGFILES}
    assert names >= {"quick", "base", "large", "base_phase2", "whole_word", "large_lamb"}
    tasks = ("quick", "sentiment", "titles", "entities", "questions", "pairs")
    assert names >= {f"finetune_{name}" for name in tasks}


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_a_flagfile_parses_and_tells_what_it_is(path):
    printed = settings_of(path)
    program, config = program_of(path)
    assert f"{config}(" in printed
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for entry in (
        "# What",
        "# Expect",
        f"# Command    python -m kbert.{program} --flagfile=configs/{path.name}",
    ):
        assert any(line.startswith(entry) for line in header), entry
    for line in path.read_text().splitlines():
        flag = re.match(r"--(\w+)=(.*)", line)
        if flag and flag[1] not in ("output_dir",):
            assert re.search(rf"\b{flag[1]}=", printed), line


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_architecture_tells_what_it_is(path):
    text = path.read_text()
    assert "# What" in text and "# Parameters" in text
