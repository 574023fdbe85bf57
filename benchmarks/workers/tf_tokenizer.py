"""The work of the libraries whose tokenizers run as TensorFlow graphs."""

import numpy as np
import tensorflow as tf

from benchmarks.worker import Work


def tokenizer_work(tokenize, lines, settings):
    """Returns the Work of tokenizing lines. Units: bytes.

    Args:
        tokenize: function from (B,) strings to ragged ids; it is compiled to a graph.
    """
    B = settings["batch_size"]
    batches = [tf.constant(lines[i : i + B]) for i in range(0, len(lines), B)]
    traced = tf.function(tokenize, [tf.TensorSpec([None], tf.string)], autograph=False)
    size = sum(len(line.encode()) for line in lines)

    def run(steps):
        for _ in range(steps):
            for batch in batches:
                traced(batch)
        return {"units": steps * size}

    def save(path):
        rows = [traced(batch) for batch in batches]
        np.savez(
            path,
            ids=np.concatenate([ids.flat_values.numpy() for ids in rows]),
            lengths=np.concatenate([ids.row_lengths().numpy() for ids in rows]),
        )

    return Work(run, "a TensorFlow graph", save)
