"""Models on items, many at a time: sorted by length, in batches of few shapes."""

import numpy as np
import tensorflow as tf

from kbert.data.finetuning import bucket_length, pad_items

BATCH_SIZE = 32


class Forward:
    """Computes something of a model for items of any length.

    Args:
        model: of `kbert.model`, or a function like one.
        pick: function from the model's outputs and the features to the tensors wanted, a dict with
            the batch first.
        pad_id: int, of [PAD]. max_seq_length: int.
        batch_size: int.
    """

    def __init__(self, model, pick, pad_id, max_seq_length, batch_size=BATCH_SIZE):
        self._pad_id = pad_id
        self._max_seq_length = max_seq_length
        self._batch_size = batch_size
        self._compute = tf.function(
            lambda features: pick(model(features, training=False), features), reduce_retracing=True
        )

    def __call__(self, items, advance=None):
        """The outputs for each item, in the order of the items.

        Args:
            items: list of `kbert.data.finetuning.Item`; labels are not looked at.
            advance: called with the number of items done since the last call.

        Returns:
            list of dicts of numpy arrays; where the second axis is that of the tokens, they may
            reach beyond the item's own length.
        """
        results = [None] * len(items)
        order = np.argsort([-item.length for item in items], kind="stable")  # memory shows at once
        for begin in range(0, len(items), self._batch_size):
            numbers = order[begin : begin + self._batch_size]
            length = bucket_length(items[numbers[0]].length, self._max_seq_length)
            rows = self._batch_size if len(items) > self._batch_size else len(items)
            features = pad_items([items[i] for i in numbers], length, rows, self._pad_id)
            features = {name: features[name] for name in features if not name.startswith("label")}
            outputs = {name: value.numpy() for name, value in self._compute(features).items()}
            for row, number in enumerate(numbers):
                results[number] = {name: value[row] for name, value in outputs.items()}
            if advance:
                advance(len(numbers))
        return results
