"""What a reader is told to run: flagfiles, README commands, CI."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted((ROOT / "configs").glob("*.flags"))
READ = (
    "import sys; from absl import flags; import kbert.pretrain; from kbert.flags import read;"
    "from kbert.settings import PretrainConfig;"
    "flags.FLAGS(sys.argv[:1] + ['--flagfile=' + sys.argv[1]]); print(read(PretrainConfig))"
)


def settings_of(path):
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_recipes_are_there():
    names = {path.stem for path in FLAGFILES}
    assert names >= {"quick", "base", "large", "base_phase2", "whole_word", "large_lamb"}


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_a_flagfile_parses_and_tells_what_it_is(path):
    printed = settings_of(path)
    assert "PretrainConfig(" in printed
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for entry in (
        "# What",
        "# Expect",
        f"# Command    python -m kbert.pretrain --flagfile=configs/{path.name}",
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


def test_commands_of_the_readme_name_files_and_flags_that_exist():
    for command in commands_of((ROOT / "README.md").read_text()):
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
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, check=True, timeout=900)
