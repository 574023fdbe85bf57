"""Lines for a person on a run, and the speed that they report."""

import math


def time_text(seconds):
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def model_line(bert, parameters, precision):
    """The model of a run. bert: BertConfig. parameters: int."""
    heads = ""
    if bert.attention_heads_per_layer:
        all_heads = bert.num_hidden_layers * bert.num_attention_heads
        heads = f"{sum(bert.attention_heads_per_layer)} of {all_heads} heads, "
    return (
        f"model: {bert.num_hidden_layers} layers, width {bert.hidden_size}, {heads}"
        f"{parameters / 1e6:.1f} M parameters, {precision}, vocabulary of {bert.vocab_size:,}"
    )


def throughput_text(metrics, eta_seconds):
    """What the lines of all workloads end with. metrics: of a window of steps."""
    skipped, waited = metrics["skipped_steps"], metrics["input_wait"]
    zeros = f"{metrics['sparsity']:.1%} zeros | " if "sparsity" in metrics else ""
    return (
        f"{zeros}lr {metrics['learning_rate']:.2e} | "
        f"{metrics['tokens_per_second']:,.0f} tokens/s | "
        f"ETA {time_text(eta_seconds)}{f' | {skipped:.0f} skipped' if skipped else ''}"
        f"{f' | {waited:.0%} of the time without a batch' if waited > 0.05 else ''}"
    )


# No call takes less time than this, whatever the clock says.
LEAST_SECONDS = 1e-6


class ThroughputMeter:
    """Speed of the steps since it was last read; the first call, which compiles, does not count.

    Attributes:
        step_seconds: of a step in the last call, infinite while nothing is known.
    """

    def __init__(self):
        self.step_seconds = math.inf
        self._compiled = False
        self._seconds = self._steps = self._tokens = self._waited = 0
        self._last = (0.0, 0.0, 0.0)

    def add(self, seconds, steps, tokens, waited):
        """Adds a call of `steps` steps. waited: seconds of it without a batch, by another clock."""
        seconds = max(seconds, LEAST_SECONDS)  # clocks are set, and machines sleep
        waited = min(max(waited, 0.0), seconds)
        if not self._compiled:
            self._compiled = True
            self._last = (tokens / seconds, seconds / steps, waited / seconds)
            return
        self.step_seconds = seconds / steps
        self._seconds += seconds
        self._steps += steps
        self._tokens += tokens
        self._waited += waited

    def read(self):
        """Tokens per second, seconds per step and the share without a batch; then starts anew."""
        if self._steps:
            seconds = self._seconds
            self._last = (self._tokens / seconds, seconds / self._steps, self._waited / seconds)
        self._seconds = self._steps = self._tokens = self._waited = 0
        return self._last
