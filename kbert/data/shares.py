"""Which batches a worker makes when several share a run."""

import typing


class Share(typing.NamedTuple):
    """A worker's share of the batches that make up global batches.

    A global batch is cut into one batch for each replica, in order; a worker has `replicas` of them
    that lie together.

    Attributes:
        worker: int, which one. workers: int, how many. replicas: int, of each worker.
    """

    worker: int = 0
    workers: int = 1
    replicas: int = 1

    def number(self, index):
        """Number in the run of the worker's batch `index`. int, or an array or tensor of them."""
        step, replica = index // self.replicas, index % self.replicas
        return (step * self.workers + self.worker) * self.replicas + replica


WHOLE = Share()  # of the only worker: all batches
