"""Fair scheduling of the work of requests on threads.

The work of a request is cut into jobs of bounded size. Requests take turns: each gets an equal
share of the threads' time, in tokens, so that a request with many rows does not delay one with few
rows by more than the batches that are being computed (weighted fair queueing; Demers, Keshav and
Shenker 1989). Long jobs cannot be interrupted, so they never take all of several threads. Jobs of
the same kind, from any request, share a batch as soon as a thread is free: the server does not wait
for a batch to fill.
"""

import asyncio
import bisect
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kbert.inference.batch_runner import BATCH_TOKENS
from kbert.server.errors import RequestError
from kbert.server.tensors import Arrays

log: logging.Logger = logging.getLogger("kbert.serve")


@dataclasses.dataclass(eq=False)
class Job:
    """A call of a function for one request.

    Args:
        function: maps `inputs` to any result or, if `kind` is set, to a dict of arrays (N, ...).
        inputs: dict of arrays. cost: of the call, in tokens.
        kind: jobs of equal kinds call equal functions and can share a batch of rows; None: a call
            of its own.
        fill: values that pad the last axis of inputs to the longest row of a batch; default 0.

    Attributes:
        future: result of the function. order: (end in virtual time, arrival).
    """

    function: Callable[[Arrays], Any]
    inputs: Arrays
    cost: float
    kind: Hashable = None
    fill: Mapping[str, int] = dataclasses.field(default_factory=dict)
    future: asyncio.Future[Any] = dataclasses.field(init=False)
    order: tuple[float, int] = (0.0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and their length in tokens; 0 if they have only one axis."""
        array = next(iter(self.inputs.values()))
        return len(array), array.shape[-1] if array.ndim > 1 else 0


class Flow:
    """The jobs of a request. scheduler: Scheduler."""

    def __init__(self, scheduler: "Scheduler") -> None:
        self.scheduler = scheduler
        self._clock = 0.0  # virtual time at which the last job ends
        self._jobs: set[Job] = set()  # that are not finished

    def put(self, job: Job) -> asyncio.Future[Any]:
        """Queues a job; returns the future of its result."""
        job.future = asyncio.get_running_loop().create_future()
        self._clock = max(self._clock, self.scheduler.clock) + job.cost
        self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._finished(job))
        self.scheduler.queue(job, self._clock)
        return job.future

    async def call(self, function: Callable[..., Any], *arguments: Any, cost: float) -> Any:
        """Returns the result of a function, called in a thread when it is this request's turn."""
        return await self.put(Job(lambda _: function(*arguments), {}, cost))

    def close(self) -> None:
        """Drops the jobs that have not begun."""
        for job in list(self._jobs):
            job.future.cancel()
            self._finished(job)

    def _finished(self, job):
        self.scheduler.drop(job)
        self._jobs.discard(job)
        if not job.future.cancelled():
            job.future.exception()  # marks it as retrieved; another job may have failed before


class Scheduler:
    """Runs the jobs of requests in threads; used by one event loop.

    Args:
        threads: number of threads.
        most_rows, most_tokens: limits of a batch; a single row may have more tokens.
        observe: called with the number of rows of each batch.

    Attributes:
        clock: virtual time: the tokens that each open request could have had computed.
    """

    def __init__(
        self,
        threads: int,
        most_rows: int,
        most_tokens: int = BATCH_TOKENS,
        observe: Callable[[int], object] = lambda rows: None,
    ) -> None:
        self.most_rows: int = most_rows
        self.most_tokens: int = most_tokens
        self.clock: float = 0.0
        self._observe = observe
        self._queues: dict[Hashable, list[Job]] = {}  # kind -> jobs in the order of their turns
        self._threads = ThreadPoolExecutor(threads, "kbert-serve")
        self._free, self._flows = threads, 0
        self._free_for_long = max(threads - 1, 1)
        self._arrivals = itertools.count()

    @contextlib.contextmanager
    def open_flow(self) -> Iterator[Flow]:
        """Opens the Flow of a request; at the end, the jobs that have not begun are dropped."""
        flow = Flow(self)
        self._flows += 1
        try:
            yield flow
        finally:
            self._flows -= 1
            flow.close()

    def queue(self, job: Job, end: float) -> None:
        """Queues a job that ends at a virtual time."""
        job.order = end, next(self._arrivals)
        queue = self._queues.setdefault(self._kind(job), [])
        bisect.insort(queue, job, key=lambda job: job.order)
        self._start()

    def drop(self, job: Job) -> None:
        """Removes a job from the queue, if it is there."""
        kind = self._kind(job)
        queue = self._queues.get(kind, [])
        place = bisect.bisect_left(queue, job.order, key=lambda job: job.order)
        if place < len(queue) and queue[place] is job:
            del queue[place]
            if not queue:
                del self._queues[kind]

    def _kind(self, job):
        """Returns the key of a job's queue: jobs without a kind and long jobs have their own."""
        return job.order if job.kind is None or self._is_long(job) else job.kind

    def _is_long(self, job):
        return job.cost > self.most_tokens

    @property
    def idle(self) -> bool:
        """Whether nothing is queued."""
        return not self._queues

    def close(self) -> None:
        """Shuts down the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self):
        """Starts batches on free threads, first the one with the job whose turn it is."""
        while self._free and (batch := self._next_batch()):
            self._free -= 1
            self._free_for_long -= self._is_long(batch[0])
            self.clock += sum(job.cost for job in batch) / max(self._flows, 1)
            if batch[0].inputs:
                self._observe(sum(job.shape[0] for job in batch))
            done = asyncio.get_running_loop().run_in_executor(self._threads, _results, batch)
            done.add_done_callback(lambda done, batch=batch: self._finish(batch, done))

    def _next_batch(self) -> list[Job]:
        """Takes the job whose turn it is, and others of its kind that fit into its batch."""
        heads = [queue[0] for queue in self._queues.values()]
        if not self._free_for_long:
            heads = [job for job in heads if not self._is_long(job)]
        if not heads:
            return []
        first = min(heads, key=lambda job: job.order)
        queue = self._queues[self._kind(first)]
        batch = queue[: self._fitting(queue)]
        for job in batch:
            self.drop(job)
        return batch

    def _fitting(self, queue):
        """Returns the number of jobs of a queue that fit into a batch; at least one does."""
        rows, length, cost = 0, 0, 0.0
        for count, job in enumerate(queue if len(queue) > 1 else ()):
            rows, length, cost = rows + job.shape[0], max(length, job.shape[1]), cost + job.cost
            if count and (rows > self.most_rows or max(rows * length, cost) > self.most_tokens):
                return count
        return len(queue)

    def _finish(self, batch, done):
        self._free += 1
        self._free_for_long += self._is_long(batch[0])
        results = [done.exception()] * len(batch) if done.exception() else done.result()
        for job, result in zip(batch, results, strict=True):
            if job.future.done():
                continue
            if isinstance(result, BaseException):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
        self._start()


def _results(batch: Sequence[Job]) -> Sequence[Any]:
    """Returns the result of each job of a batch, or its exception."""
    try:
        if len(batch) == 1:
            return [batch[0].function(batch[0].inputs)]
        return _shared(batch)
    except Exception as error:
        if len(batch) > 1:  # one by one, so that only the faulty jobs fail
            return [_results([job])[0] for job in batch]
        if not isinstance(error, RequestError):
            log.exception("a request failed")
            error = RequestError("INTERNAL", f"the model failed: {type(error).__name__}.")
        return [error]


def _shared(batch):
    first, length = batch[0], max(job.shape[1] for job in batch)
    inputs = {
        name: np.concatenate(
            [as_long(job.inputs[name], length, job.fill.get(name, 0)) for job in batch]
        )
        for name in first.inputs
    }
    outputs = first.function(inputs)
    ends = np.cumsum([job.shape[0] for job in batch])
    if any(array.ndim == 0 or len(array) != ends[-1] for array in outputs.values()):
        raise ValueError("an output has a different number of rows than the inputs")
    return [
        {name: array[end - job.shape[0] : end] for name, array in outputs.items()}
        for job, end in zip(batch, ends, strict=True)
    ]


def as_long(array: np.ndarray, length: int, fill: object, axis: int = -1) -> np.ndarray:
    """Returns an array, padded at the end of an axis to a length."""
    missing = length - array.shape[axis]
    if missing <= 0:
        return array
    added = [(0, 0)] * array.ndim
    added[axis] = (0, missing)
    return np.pad(array, added, constant_values=fill)
