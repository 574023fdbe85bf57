"""Dynamic batching of requests.

Rows of similar length share a batch, from any client, as soon as a compute thread is free: the
server does not wait for a batch to fill. Results do not depend on the other rows of a batch: rows
do not affect each other, and padding is removed.
"""

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from kbert.inference.backends import PARALLEL, on_gpu
from kbert.inference.batch_runner import BATCH_TOKENS
from kbert.server.errors import RequestError, invalid

if TYPE_CHECKING:
    from kbert.server.demo import AttentionServable
    from kbert.server.servable import Servable, Signature

log: logging.Logger = logging.getLogger("kbert.serve")
MOST_BYTES = 64 << 20  # maximum size of the outputs of a request that is computed in pieces
UNKNOWN_TOKENS = 128  # tokens counted for a request whose length is unknown


@dataclasses.dataclass(eq=False)
class _RequestPiece:
    """Rows of one request that share a batch."""

    servable: "Servable | AttentionServable"
    signature: "Signature"
    inputs: Mapping[str, np.ndarray]
    rows: np.ndarray  # indices of the rows in the request
    length: int
    future: asyncio.Future
    order: int = 0  # of arrival
    queue: "collections.deque[_RequestPiece] | None" = None  # contains this piece


class Batcher:
    """Computes requests in batches, in threads; used by one event loop.

    Args:
        max_batch_size: rows per batch. max_queue_tokens: maximum tokens of queued requests.
        observe: called with the number of rows of each batch.

    Attributes:
        waiting: int, tokens queued or being computed. max_queue_tokens: int.
    """

    def __init__(
        self,
        max_batch_size: int = 32,
        max_queue_tokens: int = 1 << 17,
        observe: Callable[[int], object] = lambda rows: None,
    ) -> None:
        self._most_rows = max_batch_size
        self._most_tokens = 1 << 20 if on_gpu() else BATCH_TOKENS
        self.max_queue_tokens: int = max_queue_tokens
        self._observe = observe
        self._queues = {}  # batch key -> deque of pieces that can share a batch
        self._threads = ThreadPoolExecutor(PARALLEL, "kbert-compute")
        self._free = PARALLEL
        self._arrived = 0
        self.waiting: int = 0

    async def compute(
        self,
        servable: "Servable | AttentionServable",
        signature: "Signature",
        inputs: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Computes a Signature of a Servable: maps a dict of input arrays to a dict of arrays.

        Raises:
            RequestError: the inputs do not fit the signature, or the queue is full.
        """
        B = servable.check(signature, inputs)
        alone = servable.metadata is None or not B
        lengths = np.zeros(1, int) if alone else servable.lengths(inputs)
        weight = UNKNOWN_TOKENS if alone else int(lengths.sum())
        if max(weight, B or 1) > self.max_queue_tokens:
            raise invalid(
                f"{B or 1:,} texts in one request, about {weight:,} tokens; at most "
                f"{self.max_queue_tokens:,} are allowed. Send fewer texts per request."
            )
        if self.waiting + weight > self.max_queue_tokens:
            raise RequestError(
                "RESOURCE_EXHAUSTED", f"{self.waiting:,} tokens are waiting; try again later."
            )
        loop = asyncio.get_running_loop()
        cuts = [(np.arange(1), 0)] if alone else _cuts(lengths, self._most_rows, self._most_tokens)
        pieces = [
            _RequestPiece(
                servable,
                signature,
                inputs if alone else {name: array[rows] for name, array in inputs.items()},
                rows,
                length,
                loop.create_future(),
            )
            for rows, length in cuts
        ]
        widths = {name: array.shape[1] for name, array in inputs.items() if array.ndim > 1}
        del inputs
        self.waiting += weight
        try:
            for piece in pieces:
                self._put(piece, alone)
            answers, size = [], 0
            for piece in pieces:
                answers.append(await piece.future)
                size += sum(array.nbytes for array in answers[-1].values())
                if size > MOST_BYTES and len(pieces) > 1:
                    raise invalid(
                        f"the response is larger than {MOST_BYTES:,} bytes; send fewer texts per "
                        f"request."
                    )
        finally:
            self.waiting -= weight
            for piece in pieces:
                self._drop(piece)
        if alone:
            return answers[0]
        order = np.argsort(np.concatenate([piece.rows for piece in pieces]))
        return _together(answers, order, widths, servable.metadata["padded"])

    def _drop(self, piece: _RequestPiece) -> None:
        """Removes a piece from its queue, if its request was canceled or failed."""
        if piece.future.done() and not piece.future.cancelled():
            piece.future.exception()  # marks it as retrieved; another piece has failed before
        piece.future.cancel()
        if piece.queue and piece in piece.queue:
            piece.queue.remove(piece)
            self._queues = {key: queue for key, queue in self._queues.items() if queue}

    def close(self) -> None:
        """Shuts down the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _put(self, piece, alone):
        self._arrived += 1
        piece.order = self._arrived
        shapes = tuple(array.shape[1:] for array in piece.inputs.values())
        bucket = self._arrived if alone else int(piece.length).bit_length()
        key = (id(piece.servable), piece.signature.name, shapes, alone, bucket)
        piece.queue = self._queues.setdefault(key, collections.deque())
        piece.queue.append(piece)
        self._start()

    def _start(self):
        """Starts batches on free threads, the batch with the oldest piece first."""
        while self._free and (batch := self._next_batch()):
            self._free -= 1
            self._observe(sum(len(piece.rows) for piece in batch))
            done = asyncio.get_running_loop().run_in_executor(self._threads, _compute, batch)
            done.add_done_callback(lambda done, batch=batch: self._finish(batch, done))

    def _next_batch(self) -> list[_RequestPiece]:
        """Returns the oldest piece and later ones that fit into its batch; [] if there is none."""
        if not self._queues:
            return []
        key = min(self._queues, key=lambda key: self._queues[key][0].order)
        queue, batch, rows, length = self._queues[key], [], 0, 0
        while queue:
            rows, length = rows + len(queue[0].rows), max(length, queue[0].length)
            if batch and (rows > self._most_rows or rows * length > self._most_tokens):
                break
            batch.append(queue.popleft())
        if not queue:
            del self._queues[key]
        return batch

    def _finish(self, batch, done):
        self._free += 1
        results = [done.exception()] * len(batch) if done.exception() else done.result()
        for piece, result in zip(batch, results, strict=True):
            if piece.future.done():
                continue
            if isinstance(result, BaseException):
                piece.future.set_exception(result)
            else:
                piece.future.set_result(result)
        self._start()


def _cuts(
    lengths: np.ndarray, most_rows: int, most_tokens: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (rows, maximum length) of the pieces of a request: rows of similar length."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        longest = int(lengths[order[0]])
        count = max(min(most_rows, most_tokens // max(longest, 1)), 1)
        same = lengths[order[:count]] * 2 > longest
        count = len(same) if same.all() else max(int(same.argmin()), 1)
        yield order[:count], longest
        order = order[count:]


def _compute(batch: Sequence[_RequestPiece]) -> Sequence[dict[str, np.ndarray] | Exception]:
    """Returns the result of each piece of a batch: a dict of arrays, or an exception."""
    try:
        return _computed(batch)
    except Exception as error:
        if len(batch) > 1:  # recompute one by one, so that only the faulty pieces fail
            return [_compute([piece])[0] for piece in batch]
        if not isinstance(error, RequestError):
            log.exception("a request failed")
            error = RequestError("INTERNAL", f"the model failed: {type(error).__name__}.")
        return [error]


def _computed(batch):
    first = batch[0]
    if len(batch) == 1:
        return [first.servable.compute(first.signature, first.inputs)]
    inputs = {
        name: np.concatenate([piece.inputs[name] for piece in batch]) for name in first.inputs
    }
    outputs = first.servable.compute(first.signature, inputs)
    ends = np.cumsum([len(piece.rows) for piece in batch])
    if any(array.ndim == 0 or len(array) != ends[-1] for array in outputs.values()):
        raise ValueError("an output has a different number of rows than the inputs")
    return [
        {name: array[end - len(piece.rows) : end] for name, array in outputs.items()}
        for piece, end in zip(batch, ends, strict=True)
    ]


def _together(parts, order, widths, padded):
    """Combines the results of the pieces of a request; `order` restores the order of its rows.

    A padded output is as wide as the input of the same name (`widths`) or, without one, as its
    longest row. padded: see `kbert.tasks.endpoint.Endpoint`.
    """
    leading = next(iter(padded), None)
    padded = padded if leading in parts[0] else {}
    padded = {n: fill.encode() if isinstance(fill, str) else fill for n, fill in padded.items()}
    if padded:
        width = widths.get(leading)
        if width is None:
            width = max(_filled(piece[leading], padded[leading]) for piece in parts)
    answers = {}
    for name in parts[0]:
        arrays = [piece[name] for piece in parts]
        if name in padded:
            arrays = [_as_wide(array, width, padded[name]) for array in arrays]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise invalid(f"the rows of one request have different shapes of {name}.")
        answers[name] = np.concatenate(arrays)[order]
    return answers


def _filled(array, fill):
    """Returns the number of columns of (B, S, ...) up to the last one that is not all padding."""
    there = (array != fill).any(axis=(0, *range(2, array.ndim)))
    return int(np.flatnonzero(there).max(initial=-1)) + 1


def _as_wide(array, width, fill):
    """Truncates or pads (B, S, ...) to (B, width, ...)."""
    array = array[:, :width]
    if array.shape[1] == width:
        return array
    added = [(0, 0)] * array.ndim
    added[1] = (0, width - array.shape[1])
    return np.pad(array, added, constant_values=fill)
