"""Starts a run: finds its devices, locks its folder, and creates its callbacks and trainer."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from kbert.errors import UserError, convert_write_errors
from kbert.train import callbacks as cb
from kbert.train.checkpoint import BackgroundWriter
from kbert.train.cost_estimate import estimate_cost
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
    dry_run: bool = False,
) -> dict[str, Any]:
    """Creates a run, locks its folder, and trains or, for a dry run, prints the estimated cost.

    Args:
        callbacks: called after the default callbacks.

    Returns:
        the results of `Trainer.fit`; {} for a dry run.

    Raises:
        SystemExit: the run has saved a checkpoint and stopped before its last step, because of
            Ctrl-C (exit status 130) or SIGTERM (143). The status is not 0, so that `pretrain &&
            finetune` stops and Kubernetes restarts the job.
        UserError: Keras' backend is not TensorFlow, the devices or settings cannot be used, another
            process uses the folder, a file cannot be written, or the workload or the trainer
            raises the error.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"training needs Keras' TensorFlow backend; the backend is {keras.backend.backend()}. "
            f"Set KERAS_BACKEND=tensorflow, or change ~/.keras/keras.json."
        )
    devices = find_devices(workload.config)
    workload.choose_precision(devices.kind)
    config = workload.config
    workers = devices.workers
    with workers.report_lost_workers(), contextlib.ExitStack() as stack:
        workers.check_same(settings=dataclasses.asdict(config))
        if workers.is_chief:
            check_wandb(config)
        run_dir = stack.enter_context(
            remote_run_dir(output_dir, workload.subfolder, workers.is_chief)
        )
        if workers.is_chief:
            stack.enter_context(folder_lock(run_dir.folder))
        else:
            stack.enter_context(contextlib.redirect_stdout(None))
        stack.enter_context(convert_write_errors(run_dir.folder))
        background = stack.enter_context(BackgroundWriter())
        callbacks = [*default_callbacks(config, workers.is_chief), *callbacks]
        trainer = Trainer(workload, devices, run_dir, background, callbacks)
        stack.callback(trainer.call, "on_exit")
        trainer.open()
        results = estimate_cost(trainer) if dry_run else trainer.fit()
    if trainer.stop_signal and not trainer.complete:
        sys.exit(128 + trainer.stop_signal)
    return results


def default_callbacks(config: "TrainingConfig", is_chief: bool) -> list[cb.Callback]:
    """Returns the default callbacks in the order of calls: metrics are written before weights.

    Only the chief, which writes the run's files, has callbacks.
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
