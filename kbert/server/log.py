"""The server's log: one line per message on stderr, and never a flood of them."""

import logging
import os
import time

MAX_PROBLEMS = 20  # warnings and errors per period; clients can cause them
PERIOD_S = 10.0


class LogLimit(logging.Filter):
    """Drops warnings and errors above `MAX_PROBLEMS` per period, and then reports how many."""

    def __init__(self) -> None:
        super().__init__()
        self._begin, self._count = time.monotonic(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record."""
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        if now - self._begin >= PERIOD_S:
            if self._count > MAX_PROBLEMS:
                dropped = self._count - MAX_PROBLEMS
                record.msg = f"({dropped:,} more problems were not logged) {record.msg}"
            self._begin, self._count = now, 0
        self._count += 1
        return self._count <= MAX_PROBLEMS


def start_log() -> None:
    """Sends the log messages of the server, asyncio, aiohttp and gRPC to stderr."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would log each failed connection
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    shown.addFilter(LogLimit())
    for name in ("kbert.serve", "asyncio", "aiohttp", "grpc"):
        log = logging.getLogger(name)
        log.addHandler(shown)
        log.propagate = False  # absl's handler would print it again
    logging.getLogger("kbert.serve").setLevel(logging.INFO)
