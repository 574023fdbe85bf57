"""Signals that stop a run: it finishes its step and saves a checkpoint first."""

import contextlib
import signal
import threading

from kbert.utils.logging import log


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
        log("stopping: saving first")

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the caller's
        return
    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
