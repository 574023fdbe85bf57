"""`python -m kbert` and the command `kbert`; installing from a clone."""

import pathlib
import shutil
import subprocess
import sys
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


def test_an_unknown_program():
    done = run_kbert("pretain", "--input=x")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        "error: there is no program 'pretain'. Did you mean pretrain? There are learn_vocab, "
    )


def test_a_script_beside_a_clone_imports_the_package(tmp_path):
    """An import hook would come too late: the clone's folder, named kbert, would be imported."""
    clone, site = tmp_path / "kbert", tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "sample")
    shutil.copytree(ROOT / "kbert", clone / "kbert", ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    build = "import setuptools.build_meta as b; print(b.build_editable('..'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=clone, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "script.py").write_text(
        f"import site, sys; sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        f"site.addsitedir({str(site)!r}); import kbert; print(kbert.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=600
    )
    assert done.stdout.strip() == str(clone / "kbert/__init__.py"), done.stderr
