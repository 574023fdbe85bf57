"""Programs that start in a fork end, print and are signalled as others are."""

import os
import signal
import subprocess
import time

import pytest
from warm_python import PYTHON

PROGRAM = """
import os, signal, sys
print(sys.argv[1:], os.getcwd(), os.environ["WHO"], sys.stdin.read(), "tensorflow" in sys.modules)
print("bad", file=sys.stderr)
sys.exit(3)
"""
WAITING = "import signal, os; print(os.getpid(), flush=True); signal.pause()"


def test_streams_arguments_environment_and_status(tmp_path):
    command = ["-c", PROGRAM, "a b", "--c"]
    (tmp_path / "x.py").write_text(PROGRAM)
    for arguments in (command, ["x.py", *command[2:]]):
        done = subprocess.run(
            [PYTHON, *arguments],
            input="in",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"WHO": "me"},
        )
        assert done.stdout == f"['a b', '--c'] {tmp_path} me in True\n"
        assert (done.stderr, done.returncode) == ("bad\n", 3)


def test_an_exception_ends_with_its_traceback():
    done = subprocess.run([PYTHON, "-c", "1 / 0"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals(number):
    process = subprocess.Popen([PYTHON, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(30) == -number
    end = time.monotonic() + 30
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
