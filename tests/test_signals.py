"""A request to stop is heard; what to do about too large a batch is told."""

import signal
import subprocess
import types

import pytest
from warm_python import PYTHON

from kbert.train.distribution import smaller_slices

SIGNALS = """
import os, signal, sys, time, types
from kbert.train.signals import stop_requests
own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
for number, handler in own.items():  # a background job ignores SIGINT
    signal.signal(number, handler)
run = types.SimpleNamespace(stop_training=False, stop_signal=None)
with stop_requests(run):
    assert not run.stop_training
    os.kill(os.getpid(), int(sys.argv[1]))
    assert run.stop_training and run.stop_signal == int(sys.argv[1])
    assert all(signal.getsignal(n) is handler for n, handler in own.items())  # any second one stops
    while not os.fstat(1).st_size:  # the message comes from a thread
        time.sleep(0.01)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        print("stopped")
assert all(signal.getsignal(n) is handler for n, handler in own.items())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number, tmp_path):
    """In a process of its own: a signal that goes astray would end the tests."""
    command = [PYTHON, "-c", SIGNALS, str(int(number))]
    with open(tmp_path / "stdout", "w+") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=120)
        stdout.seek(0)
        lines = stdout.read().splitlines()
    wanted = ["stopping: saving a checkpoint first", "stopped"]
    assert (done.returncode, lines) == (0, wanted), done.stderr


INTERRUPTED = """
import io, os, signal, sys, time, types
from kbert.train.signals import stop_requests

class Interrupted(io.RawIOBase):
    lines = []

    def writable(self):
        return True

    def write(self, data):
        self.lines.append(bytes(data))
        if len(self.lines) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return len(data)

run = types.SimpleNamespace(stop_training=False, stop_signal=None)
sys.stdout = io.TextIOWrapper(io.BufferedWriter(Interrupted()))
with stop_requests(run):
    print("step 1", flush=True)
while len(Interrupted.lines) < 2:
    time.sleep(0.01)
sys.stdout = sys.__stdout__
print(run.stop_signal, *Interrupted.lines)
"""


def test_a_signal_may_interrupt_a_line_of_the_log():
    command = [PYTHON, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    wanted = "15 b'step 1\\n' b'stopping: saving a checkpoint first\\n'\n"
    assert (done.returncode, done.stdout) == (0, wanted), done.stderr


@pytest.mark.parametrize(
    ("batch", "replicas", "now", "more"),
    [(6, 1, 1, 2), (6, 1, 2, 3), (6, 2, 1, 3), (45, 1, 5, 9), (6, 1, 6, None), (6, 2, 3, None)],
)
def test_the_next_number_of_slices_that_divides_a_replicas_share(batch, replicas, now, more):
    config = types.SimpleNamespace(global_batch_size=batch, accumulation_steps=now, remat=False)
    what = f"Use --accumulation_steps={more}, which computes the same in smaller slices"
    what = what if more else "Each slice is already a single example"
    assert smaller_slices(config, replicas) == f"{what}; --remat also saves memory"
    config.remat = True
    assert smaller_slices(config, replicas) == what
