"""Starts a run: sets up devices, workers, the locked folder, callbacks and the trainer."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras

from kbert.errors import UserError, writing
from kbert.train import callbacks as cb
from kbert.train.checkpoint import BackgroundWriter
from kbert.train.distribution import find_devices
from kbert.train.profile import Profiler
from kbert.train.remote_sync import remote_run_dir
from kbert.train.trainer import Trainer
from kbert.train.wandb_logger import WandbLogger, check_wandb
from kbert.utils.locks import folder_lock

if TYPE_CHECKING:
    from kbert.settings import TrainingConfig
    from kbert.train.distillation import Distillation
    from kbert.train.workload import Workload


def start_run(
    workload: "Workload | Distillation",
    output_dir: str | os.PathLike[str],
    callbacks: Sequence[cb.Callback] = (),
    act: Callable[[Trainer], dict[str, Any]] = Trainer.fit,
) -> dict[str, Any]:
    """Creates a run, locks its folder and calls `act(trainer)`.

    Args:
        workload: model, data and objective. output_dir: the run's folder.
        callbacks: called after the default callbacks.
        act: function of the opened trainer; its result is returned.

    Raises:
        SystemExit: Ctrl-C or SIGTERM stopped the run after a checkpoint was saved. The exit status
            is 130 or 143, so that `pretrain && finetune` stops and Kubernetes restarts the job.
        UserError: Keras uses another backend, files cannot be written, or the workload or `act`
            raises it.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"training needs Keras on TensorFlow; it is on {keras.backend.backend()}. Set "
            f"KERAS_BACKEND=tensorflow, or change ~/.keras/keras.json."
        )
    config = workload.config
    devices = find_devices(config)
    workers = devices.workers
    with workers.losses_reported(), contextlib.ExitStack() as stack:
        workers.check_same(settings=dataclasses.asdict(config))
        if workers.is_chief:
            check_wandb(config)
        workload.check()
        run_dir = stack.enter_context(remote_run_dir(output_dir, workload.part, workers.is_chief))
        if workers.is_chief:
            stack.enter_context(folder_lock(run_dir.folder))
        else:
            stack.enter_context(contextlib.redirect_stdout(None))
        stack.enter_context(writing(run_dir.folder))
        background = stack.enter_context(BackgroundWriter())
        usual = usual_callbacks(config, workers.is_chief)
        trainer = Trainer(workload, devices, run_dir, background, [*usual, *callbacks])
        stack.callback(trainer.call, "on_exit")
        trainer.open()
        results = act(trainer)
    if trainer.stop_signal and not trainer.complete:
        sys.exit(128 + trainer.stop_signal)
    return results


def usual_callbacks(config: "TrainingConfig", is_chief: bool) -> list[cb.Callback]:
    """Returns the default callbacks in call order: metrics are written before weights.

    Args:
        config: settings of the run. is_chief: whether this worker writes the run's files.
    """
    if not is_chief:
        return []
    return [
        cb.RunFolder(),
        *([Profiler(config.profile)] if config.profile else []),
        *(cb.MetricsFile(), cb.TensorBoard()),
        *([WandbLogger()] if config.wandb_project else []),
        *(cb.LearningCurves(), cb.ProgressLines(), cb.ModelCheckpoint()),
    ]
