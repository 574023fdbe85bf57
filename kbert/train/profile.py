"""Profiling of training steps for TensorBoard."""

import math
import re

import tensorflow as tf

from kbert.errors import UserError
from kbert.train.callbacks import Callback
from kbert.utils.logging import log


def profiled_steps(text: str) -> tuple[int, int]:
    """Parses the value of `--profile`, such as "10,13"; returns (START, STOP)."""
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(
            f"profile must be START,STOP: two step numbers with START < STOP, such as 10,13; got "
            f"{text!r}."
        )
    return int(match[1]), int(match[2])


class Profiler(Callback):
    """Writes a profile of the steps START + 1 to STOP to the run's TensorBoard folder."""

    def __init__(self, text: str) -> None:
        self._steps = profiled_steps(text)
        self._profiling = False

    def on_build(self) -> None:
        """Logs a note if the run resumes after START; raises UserError if it ends before."""
        start, stop = self._steps
        steps = self.trainer.workload.train_steps
        if start >= steps:
            raise UserError(
                f"profile must start before the last step, {steps:,}; got {start},{stop}. "
                f"Use --profile={max(steps - 3, 0)},{steps}"
            )
        if start < self.trainer.step:
            log(f"note: step {start:,} of --profile has passed; nothing is profiled")

    def steps_left(self, step: int) -> float:
        return min((border - step for border in self._steps if border > step), default=math.inf)

    def on_train_begin(self) -> None:
        self.on_step_end()

    def on_step_end(self) -> None:
        start, stop = self._steps
        if self.trainer.step == start:
            tf.profiler.experimental.start(str(self.trainer.folder / "tensorboard"))
            self._profiling = True
        elif self.trainer.step == stop:
            self._stop("as requested")

    def on_train_end(self) -> None:
        self.on_exit()

    def on_exit(self) -> None:
        self._stop("early because the run ended")

    def _stop(self, reason):
        if self._profiling:
            self._profiling = False
            tf.profiler.experimental.stop()
            shown = self.trainer.run_dir.display_path(self.trainer.folder / "tensorboard")
            log(
                f"wrote a profile that begins at step {self._steps[0]:,} and ended {reason}; open "
                f"it with TensorBoard's profile plugin: --logdir={shown}"
            )
