"""Multi-worker training: the processes of a run and their communication."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from kbert.errors import UserError, one_line
from kbert.utils.logging import log

if TYPE_CHECKING:
    # The lazily loaded `tf.distribute` is opaque to type checkers.
    from tensorflow.python.distribute.distribute_lib import Strategy

# Errors that TensorFlow raises in a worker when another worker has failed.
_LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_TF_CONFIG_EXAMPLE = (
    '{"cluster": {"worker": ["HOST1:2222", "HOST2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Workers:
    """The worker processes of a run; a single-process run has one worker.

    Worker 0 is the chief: only the chief writes files and logs. Decisions that depend on a clock, a
    signal or an evaluation are synchronized, so that all workers take the same steps.

    Attributes:
        strategy: a tf.distribute.Strategy.
        index: index of this worker, from 0.
        addresses: HOST:PORT of all workers; empty for a single-process run.
    """

    strategy: "Strategy"
    index: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of workers."""
        return max(1, len(self.addresses))

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run's files."""
        return self.index == 0

    def sum(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns the sum of the values over the workers, a float64 array of the same shape.

        All workers must call this method; it blocks until they do.
        """
        values = np.asarray(values, np.float64)
        return self._sum(tf.constant(values)).numpy() if self.count > 1 else values

    @tf.function(autograph=False)
    def _sum(self, values):
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    def barrier(self) -> None:
        """Blocks until all workers have called it."""
        self.sum([0])

    def from_chief(self, values: Sequence[float]) -> np.ndarray:
        """Returns the chief's values, a float64 array. All workers must call this method."""
        return self.sum(values if self.is_chief else np.zeros(len(values)))

    @contextlib.contextmanager
    def chief_first(self) -> Iterator[None]:
        """Context manager: the chief runs the body first, while the other workers wait."""
        if not self.is_chief:
            self.barrier()
        yield
        if self.is_chief:
            self.barrier()

    def check_same(self, **values: object) -> None:
        """Raises UserError in every worker unless all have the same values, compared as JSON."""
        for name, value in values.items():
            text = json.dumps(value, sort_keys=True, default=str)
            digest = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)  # exact in float64
            if self.sum([digest != self.from_chief([digest])[0]])[0]:
                raise UserError(
                    f"the workers do not have the same {name}. Start all of them with the same "
                    f"flags, the same text, and an --output_dir that all of them can access."
                )

    @contextlib.contextmanager
    def report_lost_workers(self) -> Iterator[None]:
        """Context manager: converts TensorFlow's errors on failed workers to UserErrors."""
        try:
            yield
        except _LOST_WORKER_ERRORS as error:
            if self.count == 1:
                raise
            raise UserError(
                f"worker {self.index} of {self.count} lost the connection to another worker, whose "
                f"output shows the cause. Restart all workers (their number may change): the run "
                f"resumes from the last checkpoint."
            ) from error


def read_cluster(environ: Mapping[str, str] = os.environ) -> tuple[int, tuple[str, ...]]:
    """Returns this worker's index and the addresses of all workers, according to TF_CONFIG.

    TF_CONFIG contains JSON in TensorFlow's format, as set by Kubeflow and Vertex AI: `cluster`,
    with the lists of addresses "worker" and, optionally, "chief"; and `task`, with this worker's
    `type` and `index`.

    Args:
        environ: environment variables.

    Raises:
        UserError: TF_CONFIG is not set or not valid.
    """
    text = environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        others = set(cluster) - {"chief", "worker"}
        if others or kind not in cluster:
            raise ValueError(f"{', '.join(sorted(others)) or kind} is not a training task")
        if not 0 <= index < len(cluster[kind]):
            raise ValueError(f"the cluster has no {kind} {index}")
        chief, workers = (_addresses(cluster, name) for name in ("chief", "worker"))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, LookupError) else str(error)
        raise UserError(
            f"with --distribution=multi_worker, TF_CONFIG must contain the cluster and this "
            f"worker's task; it is "
            f"{f'{text[:100]!r} ({reason})' if text else 'not set'}. Set it, for example, to "
            f"{_TF_CONFIG_EXAMPLE}"
        ) from error
    return index + (len(chief) if kind == "worker" else 0), (*chief, *workers)


def _addresses(cluster, kind):
    addresses = cluster.get(kind, [])
    if not isinstance(addresses, list):
        raise ValueError(f"{kind} must be a list of HOST:PORT; it is {addresses!r}")
    for address in addresses:
        match = re.fullmatch(r"\S+:(\d{1,5})", address) if isinstance(address, str) else None
        if not match or not 0 < int(match[1]) < 1 << 16:
            raise ValueError(f"{kind} must be a list of HOST:PORT; it has {address!r}")
    return addresses


def join_cluster(index: int, addresses: tuple[str, ...]) -> Workers:
    """Connects to the other workers and waits for them; see `read_cluster` for the arguments.

    Raises UserError if this worker cannot listen at its address, or cannot reach the others.
    """
    others = ", ".join(address for i, address in enumerate(addresses) if i != index)
    log(f"worker {index} of {len(addresses)}, {addresses[index]}; waiting for {others or 'none'}")
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise UserError(
            f"worker {index} of {len(addresses)} cannot join the others ({one_line(error, 300)}). "
            f"Check that no other program listens on the port of {addresses[index]}, and that the "
            f"hosts in TF_CONFIG can reach each other; then restart all workers."
        ) from error
    return Workers(strategy, index, addresses)
