"""Two runs never share a folder; a request to stop is heard."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from kbert.errors import UserError
from kbert.train import guards
from kbert.train.guards import folder_lock, stop_requests

HOLD = """
import sys, time
from kbert.train.guards import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"run is in use by process {first.pid} on .*Wait"),
            folder_lock(tmp_path / "run"),
        ):
            pass
    finally:
        first.kill()  # not a chance to tidy up
        first.wait()
    with folder_lock(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run/lock").read_text()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(guards.fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"cannot lock .*lock: No locks available. Take an --output"),
        folder_lock(tmp_path),
    ):
        pass


@pytest.fixture
def handlers():
    """Python's own handlers, whatever started the tests: a background job ignores SIGINT."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield own
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number, handlers, capsys):
    with stop_requests() as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received
        assert "stopping: saving first" in capsys.readouterr().out
        for each, handler in handlers.items():  # any second one stops
            assert signal.getsignal(each) is handler
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    for each, handler in handlers.items():
        assert signal.getsignal(each) is handler
