"""What goes wrong costs no more than the last checkpoint, and changes no number: a short version.

    python -m pytest -m slow tests/test_chaos.py

The long one is `python -m tests.chaos`.
"""

import pathlib
import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_dozen_kills_and_every_fault():
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--kills=12", "--seed=1"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\| all \|  \| 12 \| 0 \| 0 \| 0 \|", done.stdout, re.MULTILINE)
    assert "nothing went wrong" in done.stdout
