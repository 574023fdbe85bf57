"""Callbacks: hooks that the trainer calls at fixed points of a run."""

import json
import math
import pathlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.errors import UserError, one_line
from kbert.model.weights.native import write_arrays
from kbert.train.checkpoint import OPTIMIZER_FILE
from kbert.train.report import throughput_text
from kbert.utils import atomic, flags
from kbert.utils.logging import log
from kbert.visualization import curves

if TYPE_CHECKING:
    from kbert.train.trainer import Trainer

# Wait this many times the duration of the last plot before drawing the next one.
CURVES_PAUSE_FACTOR = 50
# Print a progress line after the first step that ends this many seconds after the start, or later.
FIRST_LINE_SECONDS = 10


class Callback:
    """Base class of all callbacks: a subclass overrides the hooks that it needs.

    In a run of several workers, each worker calls the methods of its own callback objects. Only the
    chief has evaluation metrics.

    Attributes:
        trainer: the `kbert.train.trainer.Trainer` of the run, which sets this attribute. Among its
            attributes are `step`, `model`, `workload`, `config` and `folder`. To save a checkpoint
            and stop the run, set `trainer.stop_training = True`.
    """

    trainer: "Trainer" = None  # type: ignore  # set by the trainer

    def steps_left(self, step: int) -> float:
        """Returns the number of steps after which `on_step_end` must be called, or infinity.

        The training function takes several steps per call, but no more than the smallest of these
        numbers over all callbacks.

        Args:
            step: number of steps taken so far.
        """
        return math.inf

    def on_build(self) -> None:
        """Called once the model has its initial weights, before the run writes its files.

        Raise UserError here if the callback does not support this model or its settings.
        """

    def on_train_begin(self) -> None:
        """Called before the first step."""

    def on_step_end(self) -> None:
        """Called after each call of the training function, which takes one or more steps."""

    def on_log(self, metrics: dict[str, float]) -> None:
        """Called every `log_every_steps` steps and after step `train_steps`.

        Args:
            metrics: dict of name -> float. Later callbacks see the changes that you make to it.
        """

    def on_evaluate(self, metrics: dict[str, float], better: bool) -> None:
        """Called after an evaluation.

        Args:
            metrics: dict of name -> float, each name prefixed with `eval_`.
            better: whether these weights are the best so far.
        """

    def on_save(self) -> None:
        """Called to save a checkpoint: every `save_every_steps` steps, and before the run ends."""

    def on_train_end(self) -> None:
        """Called after the last step of a complete or stopped run, but not after an error."""

    def on_finish(self, results: dict[str, Any]) -> None:
        """Called in the chief when the run is complete.

        Args:
            results: results of the run, a dict that may be nested.
        """

    def on_exit(self) -> None:
        """Called when the process leaves the run, even after an error."""


class RunFolder(Callback):
    """Creates the run's folder, writes `run.flags`, and cleans up after a killed run."""

    def on_train_begin(self) -> None:
        trainer = self.trainer
        trainer.folder.mkdir(parents=True, exist_ok=True)
        path = trainer.folder / "run.flags"
        if not trainer.complete or not path.exists():  # a complete run keeps its flags
            text = flags.as_flagfile(
                trainer.config, f"replays this run: {trainer.resume_command()}"
            )
            text += flags.flag_line("output_dir", trainer.run_dir.display_path())
            atomic.write_text(path, text)
        for name in ("best", "final"):
            atomic.recover_folder(trainer.folder / name)
        trainer.checkpoints.delete_old(trainer.step)


class MetricsFile(Callback):
    """Appends the metrics to `metrics.jsonl`, with null for non-finite values."""

    def on_train_begin(self) -> None:
        path = self.trainer.folder / "metrics.jsonl"
        drop_later_rows(path, self.trainer.step, self.trainer.evaluation_due)
        self._file = open(path, "a", encoding="utf-8")

    def on_log(self, metrics: dict[str, float]) -> None:
        metrics = {n: value if math.isfinite(value) else None for n, value in metrics.items()}
        self._file.write(json.dumps({"step": self.trainer.step, **metrics}) + "\n")
        self._file.flush()

    def on_evaluate(self, metrics: dict[str, float], better: bool) -> None:
        self.on_log(metrics)

    def on_train_end(self) -> None:
        self._file.close()


def drop_later_rows(path: pathlib.Path, step: int, evaluation_due: bool = False) -> None:
    """Removes damaged rows of a `metrics.jsonl`, and rows that a run resumed at `step` will write.

    If `evaluation_due`, the run will repeat the evaluation at this step. A missing file is created.
    """
    kept = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            evaluation = any(name.startswith("eval_") for name in row)
            again = row["step"] > step - (evaluation and evaluation_due)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # damaged, or cut off when the process was killed
        if not again:
            kept.append(line + b"\n")
    atomic.write_bytes(path, b"".join(kept))


class TensorBoard(Callback):
    """Writes the finite metrics to `tensorboard` as TensorBoard events."""

    def on_train_begin(self) -> None:
        self._events = tf.summary.create_file_writer(str(self.trainer.folder / "tensorboard"))

    def on_log(self, metrics: dict[str, float]) -> None:
        try:
            with self._events.as_default(self.trainer.step):
                for name, value in metrics.items():
                    part, plain = ("eval", name[5:]) if name[:5] == "eval_" else ("train", name)
                    if math.isfinite(value):
                        tf.summary.scalar(f"{part}/{plain}", value)
            self._events.flush()
        except tf.errors.OpError as error:  # raised when the disk is full, for example
            raise UserError(
                f"cannot write {self.trainer.folder / 'tensorboard'}: "
                f"{error.message.splitlines()[0]}. Fix this and run the same command again."
            ) from error

    def on_evaluate(self, metrics: dict[str, float], better: bool) -> None:
        self.on_log(metrics)

    def on_train_end(self) -> None:
        self._events.close()


class LearningCurves(Callback):
    """Draws `curves.png` after evaluations, less often if drawing is slow, and at the end.

    After an error, it logs a note and draws no more plots.
    """

    _due = 0.0  # time.monotonic() of the next plot; infinite after an error

    def on_evaluate(self, metrics: dict[str, float], better: bool) -> None:
        if time.monotonic() >= self._due:
            self.on_train_end()

    def on_train_end(self) -> None:
        if self._due == math.inf:
            return
        begin, folder = time.monotonic(), self.trainer.folder
        try:
            curves.plot_curves(folder / "curves.png", curves.read_curves(folder / "metrics.jsonl"))
            end = time.monotonic()
            self._due = end + CURVES_PAUSE_FACTOR * (end - begin)
        except Exception as error:  # a full disk or missing fonts, for example: never stop the run
            self._due = math.inf
            log(
                f"note: cannot draw curves.png: {one_line(f'{type(error).__name__}: {error}', 300)}"
            )


class ProgressLines(Callback):
    """Prints a line every `log_every_steps` steps and for each evaluation.

    If `FIRST_LINE_SECONDS` pass before the first line, it prints the metrics so far, once.
    """

    _begin: tuple[float, int] | None = None  # time and first step; None after the first line

    def on_train_begin(self) -> None:
        self._begin = time.monotonic(), self.trainer.step

    def on_step_end(self) -> None:
        if self._begin is None:
            return
        trainer, (begin, first_step) = self.trainer, self._begin
        seconds = time.monotonic() - begin
        if seconds < FIRST_LINE_SECONDS or trainer.step % trainer.config.log_every_steps == 0:
            return
        text = trainer.workload.train_text(
            trainer.step, trainer.workload.objective.metrics(trainer.sums_since_log)
        )
        log(
            f"step {trainer.step:,}/{trainer.workload.train_steps:,} | {text} | "
            f"{seconds / (trainer.step - first_step):.1f} s per step so far, including compilation"
        )
        self._begin = None

    def on_log(self, metrics: dict[str, float]) -> None:
        self._begin = None
        step, workload = self.trainer.step, self.trainer.workload
        log(
            f"step {step:,}/{workload.train_steps:,} | {workload.train_text(step, metrics)} | "
            f"{throughput_text(metrics, self.trainer.eta_seconds)}"
        )

    def on_evaluate(self, metrics: dict[str, float], better: bool) -> None:
        text = self.trainer.workload.evaluation_text(self.trainer.step, metrics)
        log(f"{text}{' | best so far' if better else ''}")


class ModelCheckpoint(Callback):
    """Writes the folders `checkpoint`, `best` and `final`.

    Copies the weights to the host's memory immediately. Writes `checkpoint` and `best` in the
    background while training continues, and `final` after training.
    """

    def on_evaluate(self, metrics: dict[str, float], better: bool) -> None:
        if better:
            self.trainer.background.wait()  # so that the host's memory holds only one copy
            weights = self._merged_weights()
            self.trainer.background.start(lambda: self._replace("best", weights))

    def on_save(self) -> None:
        trainer, step, state = self.trainer, self.trainer.step, self.trainer.state()
        trainer.background.wait()
        weights = self._merged_weights()
        optimizer = self._on_host(trainer.train_step.named_variables())

        def write(folder):
            trainer.workload.write_pretrained(folder, weights)
            write_arrays(folder / OPTIMIZER_FILE, optimizer)

        def save():
            trainer.checkpoints.save(step, state, write)
            trainer.run_dir.send(trainer.workload.subfolder)

        trainer.background.start(save)

    def on_train_end(self) -> None:
        self.trainer.background.wait()
        if self.trainer.complete:
            self._final = self._merged_weights()

    def on_finish(self, results: dict[str, Any]) -> None:
        self._replace("final", self._final)
        self.trainer.run_dir.send(self.trainer.workload.subfolder)  # before W&B, which may be slow

    def _merged_weights(self):
        """Returns a dict of name -> NumPy copy of the weight, with merged LoRA adapters."""
        weights = self._on_host(self.trainer.model.named_weights())
        for name, (a, b, scale) in self.trainer.model.adapters().items():
            weights[name] += scale * (self._on_host(a) @ self._on_host(b))
        return weights

    def _on_host(self, variables):
        """Copies Keras variables (one variable, or a dict) to NumPy arrays."""
        first_copy = self.trainer.train_step.first_copy
        return tf.nest.map_structure(lambda v: np.array(first_copy(v).numpy()), variables)

    def _replace(self, name, weights):
        with atomic.folder(self.trainer.folder / name) as folder:
            workload = self.trainer.workload
            workload.write_pretrained(folder, weights, workload.final_format)
