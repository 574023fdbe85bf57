"""What a run tells: lines on the screen, `metrics.jsonl` and TensorBoard events."""

import json
import math
import pathlib

import tensorflow as tf

from kbert.errors import UserError
from kbert.utils import atomic


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


def text_line(corpus, windows, config):
    """The text of a run. windows: `kbert.data.sentence_pairs.PairWindows` of the corpus."""
    views = windows.views_per_token(config.short_seq_prob)
    return (
        f"text: {corpus.documents:,} documents, {corpus.tokens:,} tokens; an epoch has "
        f"{windows.count:,} examples ({windows.count / config.global_batch_size:,.0f} steps) "
        f"and shows a token {views:.2f} times"
    )


def _throughput_text(metrics, eta_seconds):
    """What the lines of all kinds of training end with."""
    skipped, waited = metrics["skipped_steps"], metrics["input_wait"]
    zeros = f"{metrics['sparsity']:.1%} zeros | " if "sparsity" in metrics else ""
    return (
        f"{zeros}lr {metrics['learning_rate']:.2e} | "
        f"{metrics['tokens_per_second']:,.0f} tokens/s | "
        f"ETA {time_text(eta_seconds)}{f' | {skipped:.0f} skipped' if skipped else ''}"
        f"{f' | {waited:.0%} of the time without a batch' if waited > 0.05 else ''}"
    )


def train_line(step, train_steps, metrics, eta_seconds):
    """Metrics of a window of steps."""
    return (
        f"step {step:,}/{train_steps:,} | loss {metrics['loss']:.3f} | "
        f"mlm {metrics['mlm_loss']:.3f} acc {metrics['mlm_accuracy']:.3f} | "
        f"nsp {metrics['nsp_loss']:.3f} acc {metrics['nsp_accuracy']:.3f} | "
        f"{_throughput_text(metrics, eta_seconds)}"
    )


def held_out_line(step, metrics, better):
    """Metrics of an evaluation. better: whether its MLM loss is the lowest so far."""
    return (
        f"held out at step {step:,} | mlm {metrics['eval_mlm_loss']:.3f} "
        f"(unigram entropy {metrics['eval_unigram_entropy']:.3f}) "
        f"acc {metrics['eval_mlm_accuracy']:.3f} "
        f"perplexity {metrics['eval_mlm_perplexity']:.1f} | "
        f"nsp {metrics['eval_nsp_loss']:.3f} acc {metrics['eval_nsp_accuracy']:.3f}"
        f"{' | best so far' if better else ''}"
    )


def finetune_line(step, train_steps, epoch, metrics, eta_seconds):
    """Metrics of a window of fine-tuning. epoch: float, epochs done."""
    return (
        f"step {step:,}/{train_steps:,} | epoch {epoch:.2f} | loss {metrics['loss']:.4f} | "
        f"{_throughput_text(metrics, eta_seconds)}"
    )


def scores_line(step, metrics, best_metric, better):
    """Scores of an evaluation, that by which the best weights are chosen first."""
    first = f"eval_{best_metric}"
    names = [first, *(name for name in metrics if name != first)][:4]
    scores = " | ".join(f"{name[5:]} {metrics[name]:.4f}" for name in names)
    return f"eval at step {step:,} | {scores}{' | best so far' if better else ''}"


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


class MetricsWriter:
    """Writes metrics to `metrics.jsonl` and as TensorBoard events.

    Args:
        folder: the run's folder. step: where the run goes on; what an earlier process wrote of
            later steps is dropped, since they are made again.
        evaluation_due: whether the evaluation at this step is made again, too.
    """

    def __init__(self, folder, step, evaluation_due=False):
        folder = self._folder = pathlib.Path(folder)
        path = folder / "metrics.jsonl"
        kept = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                evaluation = any(name.startswith("eval_") for name in row)
                again = row["step"] > step - (evaluation and evaluation_due)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # the last line of a killed process, or a damaged one
            if not again:
                kept.append(line + b"\n")
        atomic.write_bytes(path, b"".join(kept))
        self._file = open(path, "a", encoding="utf-8")
        self._events = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def write(self, step, metrics):
        """Writes one object.

        Args:
            step: int. metrics: dict of name -> number; one that is not finite is written as null.

        Raises:
            UserError: the events cannot be written, as when the disk is full.
        """
        metrics = {n: value if math.isfinite(value) else None for n, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        try:
            with self._events.as_default(step):
                for name, value in metrics.items():
                    if value is not None:
                        part, plain = ("eval", name[5:]) if name[:5] == "eval_" else ("train", name)
                        tf.summary.scalar(f"{part}/{plain}", value)
            self._events.flush()
        except tf.errors.OpError as error:  # TensorFlow's word for a full disk
            raise UserError(
                f"cannot write {self._folder / 'tensorboard'}: {error.message.splitlines()[0]}. "
                f"Mend that and run the same command again."
            ) from error

    def close(self):
        """Closes both files."""
        self._file.close()
        self._events.close()
