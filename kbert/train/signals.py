"""Signals that stop a run after it has finished the current step and saved a checkpoint."""

import _thread
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.train.trainer import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_requests(run: "Trainer") -> Iterator[None]:
    """Context manager: Ctrl-C or SIGTERM sets `run.stop_training` and `run.stop_signal`.

    After the first signal, the handlers from before are restored, so that a second one normally
    ends the process immediately. Does nothing in threads other than the main thread.
    """
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number, frame):
        run.stop_training, run.stop_signal = True, number
        restore()
        # In a thread: the signal may have interrupted another `print`, which is not reentrant. No
        # threading.Thread, whose locks the interrupted code may hold.
        _thread.start_new_thread(log, ("stopping: saving a checkpoint first",))

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    for number in before:
        signal.signal(number, request)
    try:
        yield
    finally:
        restore()
