"""Batches examples of similar length; batch n is a pure function of (items, settings, seed, n)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from kbert.data.input_context import batch_number
from kbert.features import ENCODER_FEATURES
from kbert.utils.numpy_map import numpy_map
from kbert.utils.stateless_random import uniform

if TYPE_CHECKING:
    from tensorflow.python.distribute.distribute_lib import InputContext

# Lengths in tokens. A batch is padded to the smallest one that fits, if any, but not beyond
# max_seq_length. There are few, because XLA compiles the train step for each.
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# The items of an epoch are shuffled, then sorted by length within groups of this many batches.
GROUP_BATCHES = 50
# Streams of kbert.utils.stateless_random; pretraining uses 0 to 4 and 8, splits use 7.
_STREAM_ORDER, _STREAM_BATCHES = 5, 6


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedExample:
    """An encoded example, or an encoded window of a long example.

    Attributes:
        input_ids, token_type_ids: (L,) int32 without padding; or (C, L) for C choices or for C
            texts to embed, padded to the longest.
        labels: () int32 for a class or a choice; () float32 for a number; (C,) float32 for
            multiple labels; (L,) int32 for tags; (2,) int32 for the first and last token of an
            answer; (C,) int32 for texts to embed without a score, equal for equal texts; None for
            an unlabeled example.
        label_weights: float32, the weight of each label in the loss: (L,) for tags, () for other
            labels; None for an unlabeled example.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray | None = None
    label_weights: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Length L in tokens."""
        return self.input_ids.shape[-1]


def bucket_length(longest: int, max_seq_length: int) -> int:
    """Returns the padded length, in tokens, of a batch whose longest item has `longest` tokens."""
    return min(next((size for size in BUCKETS if size >= longest), longest), max_seq_length)


def pad_examples(
    items: Sequence[EncodedExample], length: int, rows: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Pads items to one length and stacks them.

    Args:
        items: at least one EncodedExample.
        length: L, at least the length of the longest item.
        rows: B, at least the number of items; the remaining rows repeat the last item, with
            label_weights 0.
        pad_id: id of [PAD].

    Returns:
        dict of input_ids, attention_mask and token_type_ids, (B, L) or (B, C, L) int32, and, if the
        items have labels, labels and label_weights, (B, ...); for tags, both are padded with 0 to
        (B, L).
    """

    def stack(name, by_token=True, value=0):
        arrays = [getattr(item, name) for item in items]
        if by_token:
            widths = [(0, 0)] * (arrays[0].ndim - 1)
            arrays = [
                np.pad(a, [*widths, (0, length - a.shape[-1])], constant_values=value)
                for a in arrays
            ]
        return np.stack(arrays + arrays[-1:] * (rows - len(arrays)))

    ids = stack("input_ids", value=pad_id)
    features = {
        "input_ids": ids,
        "attention_mask": (ids != pad_id).astype(np.int32),
        "token_type_ids": stack("token_type_ids"),
    }
    if items[0].labels is not None:
        for name in ("labels", "label_weights"):
            features[name] = stack(name, by_token=items[0].label_weights.ndim > 0)
        features["label_weights"][len(items) :] = 0
    return features


class BucketedBatches:
    """Batches of items, reshuffled in every epoch; each epoch contains each item once.

    Items of similar length are batched together: the items are shuffled and split into groups of 50
    batches, each group is sorted by length, and the order of all batches is shuffled. One batch of
    each epoch may have fewer than B items; its remaining rows are copies with label_weights 0.

    Args:
        items: examples with labels, at least one.
        batch_size: B of the global batch.
        max_seq_length: maximum L.
        pad_id: id of [PAD].
        seed: seed of the run.
    """

    def __init__(
        self,
        items: Sequence[EncodedExample],
        batch_size: int,
        max_seq_length: int,
        pad_id: int,
        seed: int,
    ):
        self._items = items
        self._batch_size = batch_size
        self._max_seq_length = max_seq_length
        self._pad_id = pad_id
        self._seed = seed
        self._lengths = np.array([item.length for item in items])
        self._order = functools.lru_cache(2)(self._order_of_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self._items) // self._batch_size)

    def _order_of_epoch(self, epoch):
        """Returns a list of arrays, the indices of the items of each batch."""
        N, B = len(self._items), self._batch_size
        order = np.argsort(uniform(self._seed, _STREAM_ORDER, [epoch], N)[0], kind="stable")
        batches = []
        for begin in range(0, N, GROUP_BATCHES * B):
            part = order[begin : begin + GROUP_BATCHES * B]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + B] for i in range(0, len(part), B)]
        draws = uniform(self._seed, _STREAM_BATCHES, [epoch], len(batches))[0]
        return [batches[i] for i in np.argsort(draws, kind="stable")]

    def mean_length(self) -> float:
        """Returns the mean padded length in tokens of the batches of the first epoch."""
        longest = [self._lengths[numbers].max() for numbers in self._order(0)]
        return float(np.mean([bucket_length(n, self._max_seq_length) for n in longest]))

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Returns the features of a batch, or of one of its parts; all parts have the same L.

        Args:
            step: number of the batch in the run, from 0.
            part: number of the part, from 0.
            parts: number of parts of a batch; must divide B.

        Returns:
            dict as from `pad_examples`, with B / parts rows.
        """
        epoch, place = divmod(int(step), self.steps_per_epoch)
        numbers = self._order(epoch)[place]
        length = bucket_length(self._lengths[numbers].max(), self._max_seq_length)
        rows = self._batch_size // parts
        part_numbers = numbers[part * rows : (part + 1) * rows]
        items = [self._items[i] for i in (part_numbers if len(part_numbers) else numbers[-1:])]
        features = pad_examples(items, length, rows, self._pad_id)
        if not len(part_numbers):
            features["label_weights"][:] = 0
        return features

    def dataset(
        self,
        batch_size: int,
        first: int = 0,
        count: int | None = None,
        input_context: "InputContext | None" = None,
    ) -> "tf.data.Dataset[dict[str, tf.Tensor]]":
        """Returns a tf.data.Dataset of the parts of the batches; see `batch`.

        Args:
            batch_size: number of rows of a part; must divide B.
            first: number of parts to skip at the start.
            count: number of parts to return; None: unlimited.
            input_context: tf.distribute.InputContext of the worker; `first` and `count` refer to
                the parts of this worker. None: there is one worker.
        """
        parts = self._batch_size // batch_size
        example = self.batch(0, 0, parts)
        specs = {name: (value.shape, value.dtype) for name, value in example.items()}
        labels = ("labels", "label_weights") if example["label_weights"].ndim > 1 else ()
        for name in (*ENCODER_FEATURES, *labels):  # one value per token
            specs[name] = ((*example[name].shape[:-1], None), example[name].dtype)
        end = np.iinfo(np.int64).max if count is None else first + count
        dataset = tf.data.Dataset.range(first, end)

        @tf.autograph.experimental.do_not_convert
        def make_part(index):
            index = batch_number(input_context, index)
            return numpy_map(
                lambda index: self.batch(index // parts, index % parts, parts), [index], specs
            )

        return dataset.map(make_part, num_parallel_calls=2, deterministic=True).prefetch(4)
