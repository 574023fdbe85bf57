"""Worker processes end with their program, however it ends."""

import os
import signal
import subprocess
import sys
import time

PROGRAM = """
import concurrent.futures, multiprocessing, os, sys, time
from kbert.corpus.local_runner import exit_with_parent
context = multiprocessing.get_context("spawn")
if __name__ == "__main__":
    pool = concurrent.futures.ProcessPoolExecutor(
        1, mp_context=context, initializer=exit_with_parent
    )
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it is opened, or read
        return False


def test_a_worker_ends_when_its_program_is_killed(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    program = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = int(program.stdout.readline())
    assert runs(worker)
    program.send_signal(signal.SIGKILL)
    program.wait()
    deadline = time.monotonic() + 60
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    if runs(worker):
        os.kill(worker, signal.SIGKILL)
        raise AssertionError("the worker goes on without its program")
