"""What a run guards itself against: a second run in its folder, and being stopped."""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import threading

from kbert.errors import UserError
from kbert.train.report import say


@contextlib.contextmanager
def folder_lock(folder):
    """Holds the lock of a run's folder; the system lets go of it however the process ends.

    Raises:
        UserError: another process holds it.
    """
    path = pathlib.Path(folder) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by {file.read().strip() or 'another process'}. Wait for it or "
                f"stop it, or take another --output_dir."
            ) from None
        except OSError as error:  # a file system without locks
            raise UserError(
                f"cannot lock {path}: {os.strerror(error.errno)}. Take an --output_dir on a file "
                f"system that has locks."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class StopRequest:
    """Whether the run was asked to stop."""

    received = False


@contextlib.contextmanager
def stop_requests():
    """Makes Ctrl-C and SIGTERM a request to save and stop; a second one stops at once."""
    stop = StopRequest()
    before = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number, frame):
        stop.received = True
        restore()
        say("stopping: saving first")

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the caller's
        return
    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
