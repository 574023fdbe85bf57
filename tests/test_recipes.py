"""What a reader is told to run: flagfiles, README commands, CI."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted((ROOT / "configs").glob("*.flags"))
READ = (
    "import sys; from absl import flags; from kbert import settings;"
    "from kbert.flags import define, read;"
    "flags.DEFINE_string('output_dir', None, ''); config = getattr(settings, sys.argv[1]);"
    "define(config); flags.FLAGS(sys.argv[1:]); print(read(config))"
)


def program_of(path):
    """The program that a flagfile is for, and the class of its settings."""
    tuned = path.stem.startswith("finetune_")
    return ("finetune", "FinetuneConfig") if tuned else ("pretrain", "PretrainConfig")


def settings_of(path):
    arguments = [program_of(path)[1], "--init_from=x", f"--flagfile={path}"]
    done = subprocess.run([sys.executable, "-c", READ, *arguments], capture_output=True, text=True)
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


def commands_of(text):
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_ci_runs_the_commands_of_the_readme():
    readme = commands_of((ROOT / "README.md").read_text())
    ci = (ROOT / ".ci/run").read_text().splitlines()
    (tests,) = [line for line in readme if "pytest" in line]
    for command in tests.split(" && "):
        assert command in ci


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem
)
def test_commands_name_files_and_flags_that_exist(page):
    for command in commands_of(page.read_text()):
        for program in re.findall(r"python -m (kbert\.\w+)", command):
            helped = subprocess.run(
                [sys.executable, "-m", program, "--helpfull"], capture_output=True, text=True
            ).stdout
            for flag in re.findall(r"--(\w+)=", command):
                assert f"--{flag}:" in helped or f"--[no]{flag}:" in helped or flag == "flagfile"
        for path in re.findall(r"=(configs/\S+)", command):
            assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_quick_learns_and_the_python_of_the_readme_runs_on_it(tmp_path):
    """The README from its first program to its last line of Python, in a folder of its own."""
    program = [sys.executable, "-m", "kbert.pretrain", f"--flagfile={ROOT}/configs/quick.flags"]
    printed = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=900
    ).stdout
    last = [line for line in printed.splitlines() if line.startswith("held out")][-1]
    loss, entropy, nsp_accuracy = re.search(
        r"mlm ([\d.]+) \(unigram entropy ([\d.]+)\) .* nsp [\d.]+ acc ([\d.]+)", last
    ).groups()
    assert float(loss) < float(entropy) - 0.3 and float(nsp_accuracy) > 0.6
    flagfile = f"--flagfile={ROOT}/configs/finetune_quick.flags"
    program = [sys.executable, "-m", "kbert.finetune", flagfile]
    subprocess.run(program, cwd=tmp_path, capture_output=True, check=True, timeout=900)
    results = json.loads((tmp_path / "saved_model/quick/finetuning/results.json").read_text())
    assert results["eval"]["accuracy"] > 0.7
    for page in ("README.md", "docs/finetuning.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        assert len(blocks) == 2, page
        script = "\n".join(blocks)
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=900)
