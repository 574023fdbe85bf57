"""Batched inference with little padding: the items are sorted by length."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kbert.data.bucketed_batches import EncodedExample, bucket_length, pad_examples
from kbert.inference.backends import PARALLEL, Backend, TensorFunction, keras_backend, on_gpu

BATCH_SIZE = 32
# Maximum number of tokens in a batch on the CPU. Larger batches have more padding and are no faster
# per token.
BATCH_TOKENS = 1024


class BatchRunner:
    """Computes a function of a model, such as its outputs, for items of any length.

    On the CPU, a batch is padded to its longest item. On a GPU, it is padded to one of a few
    shapes, so that XLA compiles few graphs.

    Args:
        function: function from the features to a dict of tensors, batch axis first.
        pad_id: id of [PAD].
        max_seq_length: maximum length of an item in tokens.
        batch_size: maximum number of items in a batch; on the CPU, batches of long items are
            smaller. Two batches are computed concurrently.
        backend: compiles the function; see `kbert.inference.backends`.
    """

    def __init__(
        self,
        function: TensorFunction,
        pad_id: int,
        max_seq_length: int,
        batch_size: int = BATCH_SIZE,
        backend: Backend = keras_backend,
    ):
        self._pad_id = pad_id
        self._max_seq_length = max_seq_length
        self._batch_size = batch_size
        self._backend = backend
        self._function = function
        self._compiled = {}  # rank of the token ids -> compiled function
        self._compiling = threading.Lock()

    def __call__(
        self, items: Sequence[EncodedExample], advance: Callable[[int], object] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Computes the outputs for each item, in the order of the items.

        Args:
            items: EncodedExamples; their labels are ignored.
            advance: called with the number of items computed since the last call; None: not called.

        Returns:
            list of dicts of the outputs, as arrays without the batch axis. The token axis of an
            output may be longer than the item.
        """
        results = [None] * len(items)
        batches = self._batches(items)
        with self._compiling:
            rank = items[0].input_ids.ndim if items else None
            if batches and rank not in self._compiled:
                features = self._features(items, batches[0])
                self._compiled[rank] = self._backend(self._function, features)
            compute = self._compiled.get(rank)
        with ThreadPoolExecutor(PARALLEL) as pool:
            computed = pool.map(lambda batch: compute(self._features(items, batch)), batches)
            for batch, outputs in zip(batches, computed, strict=True):
                for row, number in enumerate(batch):
                    results[number] = {name: value[row] for name, value in outputs.items()}
                if advance:
                    advance(len(batch))
        return results

    def _batches(self, items):
        """Returns arrays of item indices, longest items first so that memory errors occur early."""
        order = np.argsort([-item.length for item in items], kind="stable")
        batches = []
        while len(order):
            rows = self._batch_size
            if not on_gpu():
                rows = min(rows, -(-len(items) // PARALLEL), BATCH_TOKENS // items[order[0]].length)
            batches.append(order[: max(rows, 1)])
            order = order[max(rows, 1) :]
        return batches

    def _features(self, items, batch):
        length, rows = items[batch[0]].length, len(batch)
        if on_gpu():
            length = bucket_length(length, self._max_seq_length)
            rows = min(1 << (len(items) - 1).bit_length(), self._batch_size)
        features = pad_examples([items[i] for i in batch], length, rows, self._pad_id)
        return {name: features[name] for name in features if not name.startswith("label")}
