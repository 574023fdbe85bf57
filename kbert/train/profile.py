"""A profile of some steps, for TensorBoard."""

import math
import re

import tensorflow as tf

from kbert.errors import UserError
from kbert.utils.logging import log


def profiled_steps(text):
    """The two numbers of `--profile=START,STOP`, or None of "".

    Raises:
        UserError: not two whole numbers, the second one larger.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(
            f"profile must be two steps, START,STOP with START < STOP, such as 10,13; got {text!r}."
        )
    return int(match[1]), int(match[2])


class Profiler:
    """Profiles the steps of a run from START up to STOP; as a context manager, ends in any case.

    Args:
        text: of `--profile`. folder: of the TensorBoard events. shown: its name for a person.
    """

    def __init__(self, text, folder, shown=None):
        self._steps = profiled_steps(text)
        self._folder = str(folder)
        self._shown = shown or self._folder
        self._runs = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop("before it was due: the run ended")

    def check(self, step, train_steps):
        """Refuses steps that the run does not have, and tells if START has passed.

        Raises:
            UserError: START is not below train_steps.
        """
        if not self._steps:
            return
        start, stop = self._steps
        if start >= train_steps:
            raise UserError(
                f"profile must start before the last step, {train_steps:,}; got {start},{stop}. "
                f"Take --profile={max(train_steps - 3, 0)},{train_steps}"
            )
        if start < step:
            log(f"note: step {start:,} of --profile has passed; nothing is profiled")

    def steps_left(self, step):
        """Steps from `step` until something is to be done; infinite where nothing is."""
        return min(
            (border - step for border in self._steps or () if border > step), default=math.inf
        )

    def at(self, step):
        """Begins or ends where it is time for it."""
        if self._steps and step == self._steps[0]:
            tf.profiler.experimental.start(self._folder)
            self._runs = True
        elif self._steps and step == self._steps[1]:
            self._stop("as asked")

    def _stop(self, why):
        if self._runs:
            self._runs = False
            tf.profiler.experimental.stop()
            log(
                f"profile from step {self._steps[0]:,} on written, ended {why}; look at it with "
                f"TensorBoard's profile plugin: --logdir={self._shown}"
            )
