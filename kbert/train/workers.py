"""Multi-worker training: the processes of a run and their communication."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re

import numpy as np
import tensorflow as tf

from kbert.errors import UserError, one_line
from kbert.utils.logging import log

# Errors that TensorFlow raises in a worker when another worker has failed.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_EXAMPLE = (
    '{"cluster": {"worker": ["HOST1:2222", "HOST2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Workers:
    """The worker processes of a run; a single-process run has one worker.

    Worker 0 is the chief: only the chief writes files and logs. Decisions that depend on a clock, a
    signal or an evaluation are synchronized, so that all workers take the same steps.

    Attributes:
        strategy: tf.distribute.Strategy. index: int, index of this worker. addresses: HOST:PORT of
            all workers; empty for a single-process run.
    """

    strategy: tf.distribute.Strategy
    index: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def count(self):
        """int, number of workers."""
        return max(1, len(self.addresses))

    @property
    def is_chief(self):
        """Whether this worker writes the run's files."""
        return self.index == 0

    def sum(self, values):
        """Sums over the workers. values: list of numbers. Returns a float64 array.

        All workers must call it; it blocks until they do.
        """
        values = np.asarray(values, np.float64)
        return self._sum(tf.constant(values)).numpy() if self.count > 1 else values

    @tf.function(autograph=False)
    def _sum(self, values):
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    def wait(self):
        """Blocks until all workers have called it."""
        self.sum([0])

    def from_chief(self, values):
        """Returns the chief's values in every worker, as float64 array. values: list of numbers."""
        return self.sum(values if self.is_chief else np.zeros(len(values)))

    @contextlib.contextmanager
    def chief_first(self):
        """The chief runs the body while the others wait; then the others run it."""
        if not self.is_chief:
            self.wait()
        yield
        if self.is_chief:
            self.wait()

    def check_same(self, **things):
        """Raises UserError in all workers unless each value, as JSON, is the same in all."""
        for name, thing in things.items():
            text = json.dumps(thing, sort_keys=True, default=str)
            mine = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)  # exact in float64
            if self.sum([mine != self.from_chief([mine])[0]])[0]:
                raise UserError(
                    f"the workers do not have the same {name}. Start all of them with the same "
                    f"flags, the same text, and an --output_dir that all of them see."
                )

    @contextlib.contextmanager
    def losses_reported(self):
        """Converts TensorFlow's errors about a failed worker to a UserError."""
        try:
            yield
        except _LOST as error:
            if self.count == 1:
                raise
            raise UserError(
                f"worker {self.index} of {self.count} has lost another one; what ended that one is "
                f"in its own output. Start all of them again, or fewer, or more: the run goes on "
                f"from the last checkpoint."
            ) from error


def read_cluster(environ=os.environ):
    """Reads the index of this worker and the addresses of all from the variable TF_CONFIG.

    TF_CONFIG holds JSON as written by TensorFlow, Kubeflow and Vertex AI: `cluster` with the tasks
    "worker" and optionally one "chief", and `task` with `type` and `index`.

    Raises:
        UserError: the variable is not set or not valid.
    """
    text = environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        others = set(cluster) - {"chief", "worker"}
        if others or kind not in cluster:
            raise ValueError(f"{', '.join(sorted(others)) or kind} takes no part in training")
        if not 0 <= index < len(cluster[kind]):
            raise ValueError(f"the cluster has no {kind} {index}")
        chief, workers = (_addresses(cluster, name) for name in ("chief", "worker"))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, LookupError) else str(error)
        raise UserError(
            f"TF_CONFIG must tell each worker who it is with --distribution=multi_worker; it is "
            f"{f'{text[:100]!r} ({reason})' if text else 'not set'}. Set it, for example, to "
            f"{_EXAMPLE}"
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


def join_cluster(index, addresses):
    """Connects to the other workers and waits for them; takes the results of `read_cluster`.

    Returns:
        Workers.

    Raises:
        UserError: this worker cannot listen at its address, or the others cannot be reached.
    """
    others = ", ".join(address for i, address in enumerate(addresses) if i != index)
    log(f"worker {index} of {len(addresses)}, {addresses[index]}; waiting for {others or 'nobody'}")
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise UserError(
            f"worker {index} of {len(addresses)} cannot join the others ({one_line(error, 300)}). "
            f"Look whether another program listens at its port, that of {addresses[index]}, and "
            f"whether the hosts of TF_CONFIG reach each other; then start all workers again."
        ) from error
    return Workers(strategy, index, addresses)
