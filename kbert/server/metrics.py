"""The server's Prometheus metrics."""

import logging
from collections.abc import Callable

import prometheus_client as prometheus

from kbert.server.models import Models

access_log: logging.Logger = logging.getLogger("kbert.serve.access")


class Metrics:
    """Counts requests and batches, and measures the queue.

    Args:
        models: Models; only their names become labels. waiting: function that returns the number
            of tokens queued or being computed. logs_access: whether to log each request.
    """

    def __init__(
        self, models: Models, waiting: Callable[[], int], logs_access: bool = False
    ) -> None:
        self._models, self._logs_access = models, logs_access
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        names = ["model", "method"]
        self._requests = prometheus.Counter(
            "kbert_requests",
            "Requests, answered or rejected.",
            [*names, "status"],
            registry=registry,
        )
        self._seconds = prometheus.Histogram(
            "kbert_request_seconds",
            "Seconds from a request to its response.",
            names,
            registry=registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )
        self._batches = prometheus.Histogram(
            "kbert_batch_rows",
            "Rows per batch: texts, windows of long texts, choices.",
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        waits = prometheus.Gauge(
            "kbert_queue_tokens", "Tokens of open requests.", registry=registry
        )
        waits.set_function(waiting)
        self._versions = prometheus.Gauge(
            "kbert_model_version",
            "1 for available versions.",
            ["model", "version"],
            registry=registry,
        )

    def answered(
        self, model: str, method: str, status: str, seconds: float, peer: str | None = None
    ) -> None:
        """Counts a request, and logs it if the server has an access log.

        Args:
            peer: address of the client.
        """
        model = model if model in self._models else ""
        if self._logs_access:
            access_log.info(
                "%s %s %s %s %.1f ms", peer or "-", method, model or "-", status, seconds * 1e3
            )
        self._requests.labels(model, method, status).inc()
        self._seconds.labels(model, method).observe(seconds)

    def batch(self, rows: int) -> None:
        """Counts a batch."""
        self._batches.observe(rows)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format, bytes."""
        self._versions.clear()
        for name, numbers in self._models.available().items():
            for number in numbers:
                self._versions.labels(name, number).set(1)
        return prometheus.generate_latest(self._registry)
