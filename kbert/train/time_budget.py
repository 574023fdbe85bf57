"""Numbers of steps for a time budget: timed in a new run, read from its checkpoint on resuming."""

import collections
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.errors import UserError
from kbert.settings.training import time_budget_seconds
from kbert.train.report import ThroughputMeter
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.settings import PretrainConfig
    from kbert.train.trainer import Trainer

MIN_STEPS = 10
# Steps are timed for this fraction of the budget, within these limits in seconds.
BUDGET_FRACTION, MIN_SECONDS, MAX_SECONDS = 0.02, 2.0, 20.0
CALL_SECONDS = 0.5  # approximate duration of a call of the training function


def with_saved_steps(
    config: "PretrainConfig", state: Mapping[str, Any], saved: str | os.PathLike[str]
) -> "PretrainConfig":
    """Returns the settings of a resumed run, with the numbers of steps chosen when it started.

    Raises UserError if `time_budget` is set, but the run was started without one or with another.
    """
    budget, before = config.time_budget, state.get("time_budget")
    if budget is None:
        return config
    if not before or time_budget_seconds(before) != time_budget_seconds(budget):
        start = f"with --time_budget={before}" if before else "without --time_budget"
        raise UserError(
            f"--time_budget={budget} cannot change the number of steps of a run that was started "
            f"{start}, whose checkpoint is {saved}. Remove the flag, change the length of the run "
            f"with --train_steps, or use another --output_dir."
        )
    names = ("train_steps", "warmup_steps", "eval_every_steps")
    return config.with_steps(**{name: state["settings"][name] for name in names})


def with_timed_steps(config: "PretrainConfig", trainer: "Trainer") -> "PretrainConfig":
    """Times some steps; returns the settings with as many steps as fit into the time budget.

    The trainer must be at step 0 with a learning rate of 0. The timed steps do not change the run,
    because the state of the optimizer is restored.

    Raises UserError if the time is too short for `MIN_STEPS` steps, or for the warmup.
    """
    budget, seconds = config.time_budget, time_budget_seconds(config.time_budget)
    step_seconds = _time_steps(
        trainer, min(max(BUDGET_FRACTION * seconds, MIN_SECONDS), MAX_SECONDS)
    )
    steps = int(seconds / step_seconds)
    if steps < MIN_STEPS:
        raise UserError(
            f"--time_budget={budget} is too short: a step takes {step_seconds:.2f} s, and a run "
            f"needs at least {MIN_STEPS} steps. Allow more time, or use a smaller model, batch "
            f"or sequence length."
        )
    log(f"time budget of {budget}: {steps:,} steps of {step_seconds:.4f} s")
    tenth = steps // 10
    return config.with_steps(train_steps=steps, warmup_steps=tenth, eval_every_steps=tenth)


def _time_steps(trainer, seconds):
    """Takes steps for some seconds; returns the seconds per step, the same in all workers."""
    variables = list(trainer.train_step.named_variables().values())
    values = [np.array(trainer.train_step.first_copy(variable)) for variable in variables]
    batches, workers = trainer.batches(1 << 20), trainer.devices.workers
    trainer.take_steps(batches, 1)  # compiles
    begin = time.perf_counter()
    while True:
        count = max(1, int(CALL_SECONDS / trainer.throughput.step_seconds))
        count, elapsed = workers.from_chief([count, time.perf_counter() - begin])
        if trainer.step > 1 and elapsed >= seconds:
            break
        trainer.take_steps(batches, int(count))
    _, step_seconds, _ = trainer.throughput.read()
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    trainer.step, trainer.sums_since_log = 0, collections.Counter()
    trainer.throughput = ThroughputMeter()
    return float(workers.from_chief([step_seconds])[0])
