"""Dynamic batching of requests, and what each of them may take.

The texts of an export of kbert are tokenized first; only then the work is known, in tokens. Their
rows (texts, windows and choices) wait in the queue, and each batch has rows of similar length from
any request. Results do not depend on the other rows of a batch: rows do not affect each other, and
padding is removed.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kbert.features import ENCODER_FEATURES
from kbert.inference.backends import PARALLEL, on_gpu
from kbert.inference.batch_runner import BATCH_TOKENS
from kbert.server.errors import LONG_BYTES, RequestError, invalid
from kbert.server.scheduler import Flow, Job, Scheduler, as_long
from kbert.server.servable import Servable, Signature
from kbert.server.tensors import Arrays

MAX_BYTES = 64 << 20  # maximum size of the outputs of a request that is computed in rows
MAX_OUTPUT_BYTES = 4 * MAX_BYTES  # maximum size of the outputs of rows before they are decoded
UNKNOWN_TOKENS = 128  # tokens counted for a request whose length is unknown
MIN_LENGTH = 16  # tokens; shorter rows do not cost less time
CHUNK_BYTES, CHUNK_ROWS = 1 << 16, 256  # texts that are tokenized at once
BYTES_PER_TOKEN = 32  # a text that is not tokenized yet counts as one token per 32 bytes


class Budget:
    """A limit on the total number of tokens of all requests that are queued or being computed.

    A request may take at most half of the tokens that others leave, so that a few large requests do
    not fill the queue.

    Args:
        most: tokens of all requests.

    Attributes:
        waiting: int, the tokens taken.
    """

    def __init__(self, most: int) -> None:
        self.most: int = most
        self.waiting: int = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that sets the number of tokens of a request."""
        tokens = 0

        def set_token_count(count):
            nonlocal tokens
            self._check(count, self.waiting - tokens)
            self.waiting += count - tokens
            tokens = count

        try:
            yield set_token_count
        finally:
            self.waiting -= tokens

    def _check(self, tokens, others):
        if tokens > self.most // 2:
            raise invalid(
                f"the request has at least {tokens:,} tokens, in all windows and choices; at most "
                f"{self.most // 2:,} are allowed, half of --max_queue_tokens. Send fewer or "
                f"shorter texts per request."
            )
        if tokens > (self.most - others) // 2:
            raise RequestError(
                "RESOURCE_EXHAUSTED",
                f"the request has {tokens:,} tokens, but only {(self.most - others) // 2:,} are "
                f"allowed now: half of what other requests ({others:,} tokens) leave of "
                f"--max_queue_tokens={self.most:,}. Try again later.",
            )


class Batcher:
    """Computes requests in batches, in threads; used by one event loop.

    Args:
        max_batch_size: rows per batch. max_queue_tokens: maximum tokens of all open requests.
        observe: called with the number of rows of each batch.
    """

    def __init__(
        self,
        max_batch_size: int = 32,
        max_queue_tokens: int = 1 << 19,
        observe: Callable[[int], object] = lambda rows: None,
    ) -> None:
        most_tokens = 1 << 20 if on_gpu() else BATCH_TOKENS
        self._batches = Scheduler(PARALLEL, max_batch_size, most_tokens, observe)
        self._texts = Scheduler(2, CHUNK_ROWS)  # parses, tokenizes and decodes meanwhile
        self._budget = Budget(max_queue_tokens)

    @property
    def waiting(self) -> int:
        """Tokens queued or being computed."""
        return self._budget.waiting

    @property
    def idle(self) -> bool:
        """Whether nothing is queued."""
        return self._batches.idle and self._texts.idle

    @property
    def most_tokens(self) -> int:
        """The maximum number of tokens of a request."""
        return self._budget.most // 2

    async def compute(
        self,
        servable: Servable,
        signature: Signature,
        inputs: Arrays,
        report_tokens: Callable[[int], object] | None = None,
    ) -> dict[str, np.ndarray]:
        """Computes a Signature of a Servable: maps a dict of input arrays to a dict of arrays.

        Args:
            report_tokens: called with the tokens of all rows, if an export of kbert reads texts.
        """
        B = servable.check(signature, inputs)
        with (
            self._batches.open_flow() as batches,
            self._texts.open_flow() as texts,
            self._budget.share() as set_token_count,
        ):
            if servable.metadata is None or not B:
                set_token_count(UNKNOWN_TOKENS)
                return await batches.call(servable.compute, signature, inputs, cost=UNKNOWN_TOKENS)
            set_token_count(B)  # rejects too many rows before more work is done for them
            request = _Request(servable, batches, texts, set_token_count)
            if set(inputs) == set(ENCODER_FEATURES):
                return await request.from_ids(inputs)
            if "inputs" in inputs:  # tf.Examples
                set_token_count(_least_tokens(inputs))
                inputs = await texts.call(servable.texts, inputs, cost=UNKNOWN_TOKENS)
            results, tokens = await request.from_texts(inputs)
            if report_tokens:
                report_tokens(tokens)
            return servable.select(signature, results)

    async def in_turn(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `function(*arguments)`, which parses or converts a part of a request.

        Short parts are converted at once. Longer ones take turns in a thread, with texts.

        Args:
            size: bytes of the part.
        """
        if size <= LONG_BYTES:
            return function(*arguments)
        with self._texts.open_flow() as texts:
            return await texts.call(function, *arguments, cost=size / BYTES_PER_TOKEN)

    def close(self) -> None:
        """Shuts down the threads."""
        self._batches.close()
        self._texts.close()


class _Request:
    """A request to an export of kbert.

    batches, texts: Flows of its rows and its texts. set_token_count: sets its number of
    tokens.
    """

    def __init__(
        self, servable: Servable, batches: Flow, texts: Flow, set_token_count: Callable[[int], None]
    ) -> None:
        self._servable, self._set_token_count = servable, set_token_count
        self._batches, self._texts = batches, texts
        self._size = 0  # bytes of the results and of the outputs that are not decoded yet

    async def from_ids(self, features: Arrays) -> dict[str, np.ndarray]:
        """Returns the outputs of features, (B, L) or (B, C, L) each."""
        *rows, L = features["input_ids"].shape
        N = int(np.prod(rows))
        self._set_token_count(N * L)
        if len(rows) == 2:  # choices are rows
            features = {name: x.reshape(N, 1, L) for name, x in features.items()}
        pieces = self._cut(features, np.full(N, L))
        self._put(pieces)
        outputs = await self._outputs(pieces, L)
        return {name: x.reshape(*rows, *x.shape[len(rows) :]) for name, x in outputs.items()}

    async def from_texts(self, texts: Arrays) -> tuple[dict[str, np.ndarray], int]:
        """Returns the results of texts, (B,) or (B, C) each, and the tokens of their rows."""
        chunks = [{name: x[some] for name, x in texts.items()} for some in _chunks(texts)]
        tokens = [_least_tokens(chunk) for chunk in chunks]
        self._set_token_count(sum(tokens))
        queued = []
        for number, chunk in enumerate(chunks):
            features, extra = await self._encode(chunk, tokens[number])
            lengths = features["attention_mask"].sum(axis=-1).reshape(-1)
            tokens[number] = int(lengths.sum())
            self._set_token_count(sum(tokens))
            pieces = self._cut(features, lengths)  # without most of the padding
            queued.append((chunk, extra, pieces, int(lengths.max(initial=0))))
        for _, _, pieces, _ in queued:
            self._put(pieces)
        results = []
        while queued:  # a piece is freed once it is decoded
            results.append(await self._results(*queued.pop(0)))
        order = np.arange(len(next(iter(texts.values()))))
        return self._together(results, order), sum(tokens)

    async def _encode(self, texts, cost):
        servable = self._servable
        if servable.decodes:
            return await self._texts.call(servable.encode, texts, cost=cost)
        # A row for each text: several requests can share a call, which has a fixed cost.
        kind = id(servable), "encode"
        return await self._texts.put(Job(lambda x: servable.encode(x)[0], texts, cost, kind)), {}

    def _put(self, pieces):
        for _, job in pieces:
            self._batches.put(job)

    def _cut(self, features, lengths):
        """Returns pairs (indices of rows, Job), for rows of similar length."""
        servable, scheduler, pieces = self._servable, self._batches.scheduler, []
        for rows, longest in _cuts(lengths, scheduler.most_rows, scheduler.most_tokens):
            inputs = {name: x[rows, ..., :longest] for name, x in features.items()}
            job = Job(
                functools.partial(servable.compute, servable.rows),
                inputs,
                cost=len(rows) * max(longest, MIN_LENGTH),
                kind=(id(servable), (longest**2).bit_length()),  # lengths to a factor of 1.4
                fill={"input_ids": servable.metadata["pad_id"]},
            )
            pieces.append((rows, job))
        return pieces

    async def _results(self, texts, extra, pieces, L):
        """Returns the results of the texts of a chunk, when its rows are computed."""
        outputs = await self._outputs(pieces, L)
        if not self._servable.decodes:
            return outputs
        self._size -= _size(outputs)
        cost = sum(job.cost for _, job in pieces)
        results = await self._texts.call(self._servable.decode, texts, extra, outputs, cost=cost)
        self._count(results, MAX_BYTES)
        return results

    async def _outputs(self, pieces, L):
        """Returns the outputs of rows in their order; outputs of tokens are (N, L, ...)."""
        most = MAX_OUTPUT_BYTES if self._servable.decodes else MAX_BYTES
        names, parts = self._servable.metadata["token_outputs"], []
        for _, job in pieces:
            part = dict(await job.future)
            for name in part.keys() & names:
                part[name] = as_long(part[name][:, : job.shape[1]], L, 0, axis=1)
            self._count(part, most)
            parts.append(part)
        return self._together(parts, np.argsort(np.concatenate([rows for rows, _ in pieces])))

    def _count(self, arrays, most):
        self._size += _size(arrays)
        if self._size > most:
            raise invalid(
                f"the response is larger than {most:,} bytes; send fewer texts per request."
            )

    def _together(self, parts, order):
        """Combines dicts of arrays, (N, ...) each; `order` restores the order of the rows.

        Outputs in `padded` become as wide as the longest row of the first of them; outputs of
        tokens as wide as the widest part. See `kbert.tasks.endpoint.Endpoint`.
        """
        metadata, widths = self._servable.metadata, {}
        fills = dict.fromkeys(metadata["token_outputs"], 0) | metadata["padded"]
        fills = {n: fill.encode() if isinstance(fill, str) else fill for n, fill in fills.items()}
        leading = next(iter(metadata["padded"]), None)
        if leading in parts[0]:
            filled = max(_filled(part[leading], fills[leading]) for part in parts)
            widths = dict.fromkeys(metadata["padded"], filled)
        answers = {}
        for name in parts[0]:
            arrays = [part[name] for part in parts]
            if name in fills:
                width = widths.get(name, max(array.shape[1] for array in arrays))
                arrays = [as_long(x[:, :width], width, fills[name], axis=1) for x in arrays]
            if len({array.shape[1:] for array in arrays}) > 1:
                raise invalid(f"the rows of one request have different shapes of {name}.")
            answers[name] = np.concatenate(arrays)[order]
        return answers


def _size(arrays):
    return sum(array.nbytes for array in arrays.values())


def _filled(array, fill):
    """Returns the number of columns of (B, S, ...) up to the last one that is not all padding."""
    there = (array != fill).any(axis=(0, *range(2, array.ndim)))
    return int(np.flatnonzero(there).max(initial=-1)) + 1


def _sizes(texts: Arrays) -> tuple[np.ndarray, int]:
    """Returns the bytes of the texts of each example, (B,), and the texts of an example."""
    bytes_ = [
        np.fromiter(map(len, x.ravel()), np.int64, x.size).reshape(len(x), -1).sum(axis=1)
        for x in texts.values()
    ]
    return sum(bytes_), max(math.prod(x.shape[1:]) for x in texts.values())


def _least_tokens(texts: Arrays) -> int:
    """Returns the tokens that count for texts before they are tokenized."""
    sizes, count = _sizes(texts)
    return int(sizes.sum()) // BYTES_PER_TOKEN + 2 * count * len(sizes)


def _chunks(texts: Arrays) -> list[slice]:
    """Cuts texts, (B,) or (B, C) each, into chunks of limited size; returns their rows."""
    sizes, count = _sizes(texts)
    shares = np.cumsum(sizes / CHUNK_BYTES + count / CHUNK_ROWS)
    cuts = np.flatnonzero(np.diff(np.floor(shares))) + 1
    return [slice(*pair) for pair in itertools.pairwise([0, *cuts.tolist(), len(sizes)])]


def _cuts(
    lengths: np.ndarray, most_rows: int, most_tokens: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Splits a request into rows of similar length; yields (rows, maximum length)."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        longest = int(lengths[order[0]])
        count = max(min(most_rows, most_tokens // max(longest, 1)), 1)
        same = lengths[order[:count]] * 2 > longest
        count = len(same) if same.all() else max(int(same.argmin()), 1)
        yield order[:count], longest
        order = order[count:]
