"""The gate of an API limits and counts its requests; each succeeds or ends in a RequestError."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator

from kbert.server.errors import RequestError
from kbert.server.metrics import Metrics

log: logging.Logger = logging.getLogger("kbert.serve")


@dataclasses.dataclass
class Call:
    """A request as metrics and log name it. peer: address of the client."""

    method: str
    model: str = ""
    peer: str | None = None


class Gate:
    """Lets requests in. metrics: Metrics. most: maximum number of open requests."""

    def __init__(self, metrics: Metrics, most: int) -> None:
        self._metrics, self._most, self._open = metrics, most, 0

    @contextlib.contextmanager
    def passing(self, call: Call) -> Iterator[None]:
        """Counts a request; the context computes it."""
        begin, code = time.perf_counter(), "OK"
        self._open += 1
        try:
            if self._open > self._most:
                raise RequestError("RESOURCE_EXHAUSTED", f"{self._most} requests are open already.")
            yield
        except asyncio.CancelledError:  # the client disconnected, or the deadline passed
            code = "CANCELLED"
            raise
        except RequestError as error:
            code = error.code
            raise
        except Exception as error:
            code = "INTERNAL"
            log.error("a request of %s failed", call.method, exc_info=error)
            raise RequestError(code, "the server failed; see its log.") from None
        finally:
            self._open -= 1
            seconds = time.perf_counter() - begin
            self._metrics.answered(call.model, call.method, code, seconds, call.peer)
