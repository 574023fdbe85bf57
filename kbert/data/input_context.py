"""Assigns the batches of a run to the input pipelines of the workers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeVar

    import numpy as np
    import tensorflow as tf
    from tensorflow.python.distribute.distribute_lib import InputContext

    Index = TypeVar("Index", int, np.ndarray, tf.Tensor)


def batch_number(input_context: "InputContext | None", index: "Index") -> "Index":
    """Converts the number of a batch within its worker to its number within the run.

    A global batch is split into one batch per replica, in order; the batches of a worker's replicas
    are adjacent.

    Args:
        input_context: tf.distribute.InputContext of the worker; None: there is one worker.
        index: int, array or tensor, number of a replica's batch among the batches of the worker.

    Returns:
        Number of this batch among the batches of all replicas, with the type of `index`.
    """
    if input_context is None:
        return index
    workers, worker = input_context.num_input_pipelines, input_context.input_pipeline_id
    replicas = input_context.num_replicas_in_sync // workers
    step, replica = index // replicas, index % replicas
    return (step * workers + worker) * replicas + replica
