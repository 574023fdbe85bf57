"""What the sides that tokenize within tf.data share."""

import numpy as np
import tensorflow as tf

from benchmarks.worker import Work


def tokenizing(tokenize, lines, settings):
    """Work of a function from (B,) strings to ragged ids, mapped over a tf.data.Dataset."""
    dataset = tf.data.Dataset.from_tensor_slices(lines).batch(settings["batch_size"]).map(tokenize)

    def run(steps):
        for _ in range(steps):
            for _ in dataset:
                pass
        return {"units": steps * sum(len(line.encode()) for line in lines)}

    def save(path):
        batches = list(dataset)
        np.savez(
            path,
            ids=np.concatenate([batch.flat_values.numpy() for batch in batches]),
            lengths=np.concatenate([batch.row_lengths().numpy() for batch in batches]),
        )

    return Work(run, "in tf.data", save)
