"""Which batches of a run the input pipeline of a worker makes."""


def batch_number(input_context, index):
    """Number in the run of a batch of a worker.

    A global batch is cut into one batch for each replica, in order; those of a worker's replicas
    lie together.

    Args:
        input_context: tf.distribute.InputContext of the worker; None: there is one worker.
        index: number of the worker's batch. int, or an array or tensor of them.
    """
    if input_context is None:
        return index
    workers, worker = input_context.num_input_pipelines, input_context.input_pipeline_id
    replicas = input_context.num_replicas_in_sync // workers
    step, replica = index // replicas, index % replicas
    return (step * workers + worker) * replicas + replica
