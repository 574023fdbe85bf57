"""Log lines of a run, and the throughput that they report."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kbert.config import BertConfig


def time_text(seconds: float) -> str:
    """Formats a number of seconds as hours, minutes and seconds, such as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def model_line(bert: "BertConfig", parameters: int, precision: str) -> str:
    """Returns a log line that describes a model."""
    heads = ""
    if bert.attention_heads_per_layer:
        all_heads = bert.num_hidden_layers * bert.num_attention_heads
        heads = f"{sum(bert.attention_heads_per_layer)} of {all_heads} heads, "
    return (
        f"model: {bert.num_hidden_layers} layers, width {bert.hidden_size}, {heads}"
        f"{parameters / 1e6:.1f} M parameters, {precision}, vocabulary of {bert.vocab_size:,}"
    )


def throughput_text(metrics: Mapping[str, float], eta_seconds: float) -> str:
    """Returns the part of a progress line that is the same for all workloads."""
    skipped, waited = metrics["skipped_steps"], metrics["input_wait"]
    return (
        f"lr {metrics['learning_rate']:.2e} | "
        f"{metrics['tokens_per_second']:,.0f} tokens/s | "
        f"ETA {time_text(eta_seconds)}{f' | {skipped:.0f} skipped' if skipped else ''}"
        f"{f' | {waited:.0%} of the time waiting for batches' if waited > 0.05 else ''}"
    )


MIN_SECONDS = 1e-6  # minimum duration of a call, in case the clock is set back


class ThroughputMeter:
    """Measures throughput since the last `read`, without the first call, which compiles.

    Attributes:
        step_seconds: seconds per step in the last call; infinite before the first measurement.
    """

    def __init__(self) -> None:
        self.step_seconds: float = math.inf
        self._compiled = False
        self._sums = np.zeros(4)  # seconds, steps, tokens, seconds waiting
        self._last = (0.0, 0.0, 0.0)

    def add(self, seconds: float, steps: int, tokens: float, waited: float) -> None:
        """Adds a call of the training function, with its duration, steps and tokens.

        `waited` is the time spent waiting for batches, from another clock; NaN if unknown.
        """
        seconds = max(seconds, MIN_SECONDS)
        waited = min(max(waited, 0.0), seconds)
        if not self._compiled:
            self._compiled = True
            self._last = (tokens / seconds, seconds / steps, waited / seconds)
            return
        self.step_seconds = seconds / steps
        self._sums += (seconds, steps, tokens, waited)

    def read(self) -> tuple[float, float, float]:
        """Returns tokens/s, seconds per step and the fraction of time spent waiting for batches.

        The values are averages since the last `read`. If there were no steps since then, returns
        the previous values.
        """
        seconds, steps, tokens, waited = self._sums.tolist()
        if steps:
            self._last = (tokens / seconds, seconds / steps, waited / seconds)
        self._sums[:] = 0
        return self._last
