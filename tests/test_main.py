"""`python -m kbert` and the command `kbert`; installing from a clone."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import kbert
from kbert.__main__ import PROGRAMS, usage

ROOT = pathlib.Path(__file__).parent.parent


def run_kbert(*arguments):
    command = [sys.executable, "-m", "kbert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.smoke
def test_the_command_lists_all_programs():
    paths = (pathlib.Path(kbert.__file__).parent).glob("*.py")
    assert set(PROGRAMS) == {p.stem for p in paths if "program.run(" in p.read_text()}
    for arguments in ((), ("--help",), ("help",), ("-h",)):
        done = run_kbert(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, usage(), "")
    assert run_kbert("--version").stdout == f"kbert {kbert.__version__}\n"


def test_the_command_runs_programs():
    done = run_kbert("evaluate", "--help")
    assert done.returncode == 0 and "--eval_file" in done.stdout
    done = run_kbert("evaluate", "--eval_file=x")
    assert done.returncode == 2 and done.stderr.startswith("error: --model is missing")


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("finetune", ["task", "init_from", "train_file"]),
        ("distill", ["teacher", "train_file"]),
        ("evaluate", ["model", "eval_file"]),
    ],
)
def test_the_help_lists_the_flags_that_a_program_requires(program, flags):
    required = run_kbert(program, "--help").stdout.split("Required:")[1].split("Common:")[0]
    assert sorted(re.findall(r"--(\w+)=", required)) == sorted(flags)


MISTAKES = {
    "pretrain": "--input is missing: training text: ",
    "pretrain --inptu=x": "Unknown command line flag 'inptu'",
    "pretrain --input=/no/such.txt": "no file matches '/no/such.txt'",
    "prepare --input=/no/such.txt --vocab_file=x": "no file matches '/no/such.txt'",
    "learn_vocab --input=/no/such.txt": "no file matches '/no/such.txt'",
    "finetune --init_from=. --train_file=x": "--task is missing: classify (one label for a text)",
    "finetune --task=klassify --init_from=. --train_file=x": "task must be one of classify, pair",
    "finetune --task=qa --init_from=/no/such --train_file=x": "there is no folder /no/such",
    "finetune --task=qa --init_from=. --train_file=/no/such": "cannot read /no/such",
    "distill --teacher=. --train_file=/no/such": "cannot read /no/such",
    "predict --model=/no/such": "there is no folder /no/such",
    "evaluate --model=. --eval_file=/no/such": "cannot read /no/such",
    "prune --model=. --data_file=/no/such --output_dir=x": "cannot read /no/such",
    "export --model=/no/such --output_dir=x": "there is no folder /no/such",
    "convert --model=/no/such --output_dir=x": "there is no folder /no/such",
    "attention --model=/no/such --text=x": "there is no folder /no/such",
    "predict --model=. --output_file=/no/such/x": "--output_file=/no/such/x: there is no folder",
    "serve": "no model to serve: set --model_base_path",
    "serve --model_base_path=/no/such": "model default: no versions in /no/such; a version is an",
    "serve --model_config_file=/no/such": "cannot read the model config file /no/such: there is no",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_end_before_tensorflow_is_imported(arguments):
    """In a fraction of a second, then, instead of several."""
    program, *rest = arguments.split()
    command = [sys.executable, "-X", "importtime", "-m", f"kbert.{program}", *rest]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    imports, error = done.stderr.split("error: ")
    assert done.returncode == 2 and error.startswith(MISTAKES[arguments])
    packages = {line.split("|")[-1].strip().split(".")[0] for line in imports.splitlines()}
    assert "absl" in packages and not packages & {"tensorflow", "keras"}
    assert not (ROOT / "x").exists()


def test_an_unknown_program():
    done = run_kbert("pretain", "--input=x")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        "error: there is no program 'pretain'. Did you mean pretrain? The programs are learn_v"
    )


@pytest.mark.smoke
def test_files_that_come_with_kbert(tmp_path):
    folder = pathlib.Path(run_kbert("--files").stdout.strip())
    assert (folder / "export/serving/client.py").is_file()

    def error(cwd):
        command = [sys.executable, "-m", "kbert.evaluate", "--flagfile=configs/quick.flags"]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd).stderr

    assert error(tmp_path).startswith("error: Unknown command line flag 'input'")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quick.flags").write_text("--own=1")
    assert error(tmp_path).startswith("error: Unknown command line flag 'own'")


@pytest.fixture
def clone(tmp_path):
    """Folder named kbert of what an installation reads of a clone."""
    folder = tmp_path / "kbert"
    for name in ("kbert", "configs", "export"):
        shutil.copytree(
            *(ROOT / name, folder / name),
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "sample"),
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def built(clone, build, target):
    """Builds a wheel or an sdist of a clone into a folder; returns its path."""
    script = f"import setuptools.build_meta as build; print(build.{build}({str(target)!r}))"
    command = [sys.executable, "-c", script]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        command, cwd=clone, capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


def unpacked(clone, build, target):
    """Builds a wheel of a clone, and unpacks it into a folder."""
    zipfile.ZipFile(built(clone, build, clone.parent)).extractall(target)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git lists the files")
def test_an_sdist_holds_all_files_and_gives_the_same_wheel(tmp_path):
    clone, other = tmp_path / "clone", tmp_path / "unpacked"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    names = listed.splitlines()
    for name in names:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name, follow_symlinks=False)
    with tarfile.open(built(clone, "build_sdist", tmp_path)) as archive:
        archive.extractall(other, filter="data")
    (other,) = other.iterdir()
    assert len(names) > 600 and all((other / name).exists() for name in names)
    wheels = [built(folder, "build_wheel", folder.parent) for folder in (clone, other)]
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_a_wheel_holds_configs_and_export(clone, tmp_path):
    unpacked(clone, "build_wheel", tmp_path / "site")
    for name in ("configs", "export"):
        files = [p for p in (ROOT / name).rglob("*.*") if p.suffix != ".pyc"]
        here = {p.relative_to(ROOT): p.read_bytes() for p in files}
        packaged = tmp_path / "site/kbert/packaged"
        there = {p.relative_to(packaged): p.read_bytes() for p in (packaged / name).rglob("*.*")}
        assert here == there and len(here) > 5


def test_a_script_beside_a_clone_imports_the_package(clone, tmp_path):
    """An import hook would come too late: the clone's folder, named kbert, would be imported."""
    unpacked(clone, "build_editable", tmp_path / "site")
    (tmp_path / "script.py").write_text(
        f"import site, sys; sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        f"site.addsitedir({str(tmp_path / 'site')!r}); import kbert; print(kbert.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=600
    )
    assert done.stdout.strip() == str(clone / "kbert/__init__.py"), done.stderr
