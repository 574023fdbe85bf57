"""The training loop of all training programs: steps, logging, evaluation, checkpoints, resuming."""

import collections
import dataclasses
import math
import pathlib
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from kbert.errors import UserError, failed_allocation
from kbert.train.checkpoint import OPTIMIZER_FILE, Checkpoints, restore_arrays
from kbert.train.distribution import smaller_slices
from kbert.train.optimizer import make_optimizer
from kbert.train.report import ThroughputMeter
from kbert.train.resume_checks import check_fixed, report_changes
from kbert.train.signals import SIGNALS, stop_requests
from kbert.train.step import TrainStep
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.data.bucketed_batches import BucketedBatches
    from kbert.data.pretraining_batches import PretrainingExamples
    from kbert.model.pretrained import PretrainedModel
    from kbert.settings import FinetuneConfig, PretrainConfig
    from kbert.train.callbacks import Callback
    from kbert.train.checkpoint import BackgroundWriter
    from kbert.train.distillation import Distillation
    from kbert.train.distribution import Devices
    from kbert.train.optimizer import LAMB, SGD, AdamW, Muon
    from kbert.train.remote_sync import RemoteRunDir
    from kbert.train.workload import Workload

# One call of the training function takes as many steps as fit into this time, but at least one.
CALL_SECONDS = 0.5
# Abort after this many consecutive non-finite steps.
MAX_NONFINITE_STEPS = 100


class Trainer:
    """Trains a workload: `open` loads or creates the model, `fit` runs the training loop.

    Args:
        workload: model, data and objective.
        devices: the devices of the run.
        run_dir: the run's folder.
        background: writes checkpoints in a thread.
        callbacks: list of Callbacks, called in list order.

    Attributes:
        folder: the workload's subfolder of the run's folder.
        checkpoints: the checkpoints in `folder`.
        throughput: measures the throughput of the last steps.
        model, train_step: created by `open`.
        step: number of steps taken.
        sums_since_log: sums over the steps since the last log.
        best: value of the best evaluation so far, or None.
        evaluations_since_best: number of evaluations since the best one.
        evaluation_due: whether an evaluation at this step is due and not done yet.
        stop_training: if True, the run saves a checkpoint and stops.
        stop_signal: number of the signal that stopped the run, or None.
        eta_seconds: estimated remaining time at the last log.
        results: the last logged and, in the chief, the last evaluation metrics; after a
            complete run, the result of `Workload.finish`.
    """

    def __init__(
        self,
        workload: "Workload | Distillation",
        devices: "Devices",
        run_dir: "RemoteRunDir",
        background: "BackgroundWriter",
        callbacks: "Sequence[Callback]" = (),
    ) -> None:
        self.workload: Workload | Distillation = workload
        self.devices: Devices = devices
        self.run_dir: RemoteRunDir = run_dir
        self.background: BackgroundWriter = background
        self.callbacks: list[Callback] = list(callbacks)
        for callback in self.callbacks:
            callback.trainer = self
        self.folder: pathlib.Path = run_dir.folder / workload.subfolder
        self.checkpoints: Checkpoints = Checkpoints(
            self.folder / "checkpoint", self.config.keep_checkpoints
        )
        self.model: PretrainedModel = None  # type: ignore  # created by `open`
        self.train_step: TrainStep = None  # type: ignore  # created by `open`
        self.throughput: ThroughputMeter = ThroughputMeter()
        self.step: int = 0
        self.sums_since_log: collections.Counter[str] = collections.Counter()
        self.best: float | None = None
        self.evaluations_since_best: int = 0
        self.evaluation_due: bool = False
        self.stop_training: bool = False
        self.stop_signal: int | None = None
        self.eta_seconds: float = 0.0
        self.results: dict[str, Any] = {}
        self._eval_seconds, self._not_finite_steps = 0.0, 0

    @property
    def config(self) -> "PretrainConfig | FinetuneConfig":
        """Settings of the run."""
        return self.workload.config

    def call(self, hook: str, *args: object) -> None:
        """Calls the method named `hook` of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(*args)

    def open(self) -> None:
        """Loads or creates the model, and builds its training step.

        Raises:
            UserError: the inputs cannot be used, settings contradict the checkpoint or each other,
                or all checkpoints are damaged.
        """
        config, workload = self.config, self.workload
        keras.utils.set_random_seed(config.seed)
        # 1. Resume from the run's own checkpoint, if there is one ...
        state = self.checkpoints.newest(log)
        saved = self.checkpoints.path(state["step"]) if state else None
        if state:
            check_fixed(config, workload.fixed, state, saved)
        workload.load(state, saved, self.run_dir, self.devices.workers)
        self._build()
        if state:
            self._resume(state, saved)
            origin = f"step {self.step} of {self.run_dir.display_path(saved)}"
        # 2. ... or load the weights of --init_from ...
        elif config.init_from:
            origin = workload.initialize_from(config.init_from, self._restore)
        # 3. ... or start from scratch.
        else:
            origin = f"scratch, with seed {config.seed}"
        # 4. `fit` takes the steps.
        self.devices.workers.check_same(text=workload.identity(), checkpoint=self.step)
        workload.choose_steps(self)
        self.call("on_build")
        for line in workload.describe(self.devices):
            log(line)
        workload.check_metric()
        log(f"starting from {origin}")

    def _build(self):
        workload, devices = self.workload, self.devices
        with devices.strategy.scope():
            self.model = workload.make_model(workload.bert_config)
            optimizer = make_optimizer(self.config, workload.schedule)
            optimizer.build(self.model.trainable_variables)
        self.model.bert.encoder.remat = self.config.remat
        self.make_train_step(optimizer)

    def make_train_step(self, optimizer: "AdamW | LAMB | Muon | SGD") -> None:
        """Creates the training step with the workload's schedule; its first call compiles it."""
        workload, devices = self.workload, self.devices
        self.train_step = TrainStep(
            self.model, optimizer, workload.schedule, devices, self.config, workload.objective
        )

    def _resume(self, state, folder):
        self.step = state["step"]
        self._restore(folder)
        identity = self.workload.identity()
        self.sums_since_log = collections.Counter(state["sums_since_log"])
        self.evaluation_due = bool(state["evaluation_due"])
        if state["data"]["held_out"] == identity["held_out"]:
            self.best = state["best"]
            self.evaluations_since_best = state["evaluations_since_best"]
        report_changes(self.config, identity, state, self.complete, self.workload.scoring_settings)

    def _restore(self, folder):
        """Loads the weights and the optimizer of a checkpoint."""
        self.model.load_pretrained(folder)
        variables = self.train_step.named_variables()
        # A run that resumes in mixed_float16 may have been started without a loss scale.
        path = pathlib.Path(folder) / OPTIMIZER_FILE
        restore_arrays(path, variables, optional=["loss_scale/"])

    def state(self) -> dict[str, Any]:
        """Returns the JSON-serializable state that a checkpoint stores besides step and arrays."""
        return {
            "settings": dataclasses.asdict(self.config),
            "time_budget": self.workload.time_budget,
            "bert_config": self.workload.bert_config.to_dict(),
            "data": self.workload.identity(),
            "sums_since_log": dict(self.sums_since_log),
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
            "evaluation_due": self.evaluation_due,
        }

    def fit(self) -> dict[str, Any]:
        """Takes the remaining steps; returns the results, which are complete only in the chief.

        Raises:
            UserError: memory is exhausted, the loss is not finite, or files cannot be written.
        """
        if self.complete:
            log(
                f"this run is complete: step {self.step} of {self.workload.train_steps}; to train "
                f"again, use another --output_dir"
            )
        with stop_requests(self):
            self.call("on_train_begin")
            batches = self.batches(self.workload.train_steps - self.step)
            if self.evaluation_due:  # the run stopped before this evaluation
                self.evaluate()
            stopping = False
            while not self.complete and not stopping:
                self.take_steps(batches, self._steps_per_call())
                self.call("on_step_end")
                stopping = self._log_evaluate_save()
        self.call("on_train_end")
        self._finish()
        self.devices.workers.barrier()  # until the chief has written its files
        return self.results

    def _log_evaluate_save(self):
        """Logs, evaluates and saves if each is due; returns whether the run must stop."""
        self.background.check()
        last = self.step == self.workload.train_steps
        if last or self.step % self.config.log_every_steps == 0:
            self._log()
        self.evaluation_due = last or self.step % self.workload.eval_every_steps == 0
        stopping = self._stop_requested()
        if self.evaluation_due and (last or not stopping):
            self.evaluate()
            stopping = self._stop_requested()
        if stopping or self.complete or self.step % self.config.save_every_steps == 0:
            self.call("on_save")
        return stopping

    def _stop_requested(self):
        """Returns whether the run must stop: a request in one worker stops all of them."""
        received = [self.stop_signal == number for number in SIGNALS]
        requested, *received = self.devices.workers.sum([self.stop_training, *received])
        for number, count in zip(SIGNALS, received, strict=True):
            if count:
                self.stop_signal = number
        return bool(requested)

    def _finish(self):
        if not self.complete:
            command = self.resume_command()
            log(f"stopped at step {self.step}; the checkpoint is saved. Resume with:\n  {command}")
            return
        if self.devices.workers.is_chief:
            self.results = self.workload.finish(self.results, self.run_dir)
            self.call("on_finish", self.results)
        log(
            f"done: weights in {self.run_dir.display_path(self.folder / 'final')}, "
            f"metrics in {self.run_dir.display_path(self.folder / 'metrics.jsonl')}"
        )

    def resume_command(self) -> str:
        """Returns the command that resumes the run."""
        flagfile, program = self.folder / "run.flags", self.workload.program
        if self.run_dir.is_remote:  # flagfiles must be local
            shown = shlex.quote(self.run_dir.display_path(flagfile))
            return f"python -m {program} --flagfile=run.flags    (a copy of {shown})"
        return f"python -m {program} --flagfile={shlex.quote(str(flagfile))}"

    @property
    def complete(self) -> bool:
        """Whether no steps remain, or early stopping ended the run."""
        patience = self.workload.patience
        stale = patience is not None and self.evaluations_since_best >= patience
        return self.step >= self.workload.train_steps or stale

    def batches(
        self, steps: int, data: "PretrainingExamples | BucketedBatches | None" = None
    ) -> Iterator[dict[str, tf.Tensor]]:
        """Returns an iterator of the next global batches, split among the replicas in order.

        They are `steps` batches of `data` or, if it is None, of `Workload.data`.
        """
        devices, data = self.devices, self.workload.data if data is None else data
        rows = self.config.global_batch_size // devices.replicas
        first, count = self.step * devices.local_replicas, steps * devices.local_replicas
        dataset = data.dataset(rows, first, count, devices.input_context)
        if devices.workers.count > 1:
            # An unknown or finite size would make the workers synchronize before each step.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            dataset = dataset.apply(endless)
        return iter(devices.strategy.distribute_datasets_from_function(lambda _: dataset))

    def _steps_per_call(self):
        config, workload = self.config, self.workload
        every = (config.log_every_steps, config.save_every_steps, workload.eval_every_steps)
        left = min(workload.train_steps - self.step, *(n - self.step % n for n in every))
        left = min([left, *(callback.steps_left(self.step) for callback in self.callbacks)])
        steps = max(1, min(left, int(CALL_SECONDS / self.throughput.step_seconds)))
        return int(self.devices.workers.from_chief([steps])[0])  # timing differs among workers

    def take_steps(self, batches: Iterator[dict[str, tf.Tensor]], count: int) -> None:
        """Takes `count` steps and adds their sums to `window`.

        Raises:
            UserError: memory is exhausted; or the loss or the gradient is not finite, and
                `nonfinite` is "stop" or there were `MAX_NONFINITE_STEPS` such steps in a row.
        """
        begin = time.perf_counter()
        try:
            rows, waited = self.train_step.take(
                batches, tf.constant(self.step, tf.int64), tf.constant(count, tf.int32)
            )
            rows, waited = rows.numpy(), float(waited)
        except tf.errors.ResourceExhaustedError as error:
            self.background.wait()  # it may be writing the last checkpoint
            raise UserError(
                f"out of memory after step {self.step} ({failed_allocation(error.message)}). "
                f"{smaller_slices(self.config, self.devices.replicas)}; "
                f"{self._last_checkpoint_text()}."
            ) from error
        seconds = time.perf_counter() - begin
        names = self.train_step.value_names
        self.throughput.add(seconds, count, float(rows[:, names.index("tokens")].sum()), waited)
        for row in rows:
            self.step += 1
            sums = dict(zip(names, row.tolist(), strict=True))
            self._check_finite(sums["not_finite"])
            self.sums_since_log.update(sums)

    def _check_finite(self, not_finite):
        self._not_finite_steps = self._not_finite_steps + 1 if not_finite else 0
        if not not_finite:
            return
        if self.config.nonfinite == "skip" and self._not_finite_steps < MAX_NONFINITE_STEPS:
            log(f"note: the loss or the gradient is not finite at step {self.step}: skipped")
            return
        self.background.wait()  # it may be writing the last checkpoint
        hint = "or skip such steps with --nonfinite=skip; "
        if self.config.nonfinite == "skip":
            hint = f"as {MAX_NONFINITE_STEPS} consecutive steps were not finite; "
        warmup = "warmup_steps" if hasattr(self.config, "warmup_steps") else "warmup_ratio"
        raise UserError(
            f"the loss or the gradient is not finite at step {self.step}. Lower --learning_rate or "
            f"raise --{warmup}, {hint}{self._last_checkpoint_text()}."
        )

    def _last_checkpoint_text(self):
        if not self.devices.workers.is_chief:
            return f"the last checkpoint is the chief's, in {self.checkpoints.folder}"
        last = self.checkpoints.last_good
        return f"the last checkpoint is {last}" if last else "there is no checkpoint yet"

    def _log(self):
        state, workload = self.sums_since_log, self.workload
        metrics = workload.objective.metrics(state)
        skipped = state["not_finite"] + state["overflows"]
        metrics["gradient_norm"] = state["gradient_norm"] / max(state["steps"] - skipped, 1)
        metrics["skipped_steps"] = skipped
        if (scale := self.train_step.loss_scale) is not None:
            metrics["loss_scale"] = float(self.train_step.first_copy(scale))
        metrics["learning_rate"] = float(workload.schedule(self.step - 1))
        metrics["tokens_per_second"], step_seconds, metrics["input_wait"] = self.throughput.read()
        self.sums_since_log = collections.Counter()
        left = workload.train_steps - self.step
        evaluations = -(-left // workload.eval_every_steps)
        self.eta_seconds = left * step_seconds + evaluations * self._eval_seconds
        self.call("on_log", metrics)
        self.results |= metrics

    def evaluate(self) -> None:
        """Evaluates on held-out data, and records whether the weights are the best so far.

        Only the chief evaluates; it sends the value to the other workers.
        """
        workers = self.devices.workers
        self.background.wait()  # a pending write reads values that the evaluation changes
        begin = time.perf_counter()
        evaluation = self.workload.evaluation() if workers.is_chief else None
        metrics, value = evaluation or ({}, math.nan)
        evaluated, value = workers.from_chief([evaluation is not None, value])
        self.evaluation_due = False
        if not evaluated:
            return
        self._eval_seconds = max(0.0, time.perf_counter() - begin)
        better = bool(self.best is None or value > self.best)
        self.evaluations_since_best += 1
        if better:
            self.best, self.evaluations_since_best = float(value), 0
        self.results |= metrics
        self.call("on_evaluate", metrics, better)
