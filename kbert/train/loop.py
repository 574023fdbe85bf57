"""The loop of every training program: starts, takes steps, logs, evaluates, saves, goes on."""

import abc
import contextlib
import math
import pathlib
import time

import keras
import tensorflow as tf

from kbert.errors import UserError, too_much, writing
from kbert.model.weights import Tensors, write_weights
from kbert.train.checkpoint import (
    OPTIMIZER_FILE,
    BackgroundWriter,
    Checkpoints,
    restore_arrays,
)
from kbert.train.distribution import find_devices, smaller_slices
from kbert.train.metrics import MetricAccumulator
from kbert.train.profile import Profiler
from kbert.train.remote_sync import remote_run_dir
from kbert.train.report import ThroughputMeter
from kbert.train.resume_checks import check_fixed, report_changes
from kbert.train.run_writer import RunWriter
from kbert.train.signals import stop_requests
from kbert.train.sparsity import MagnitudePruning
from kbert.train.step import TrainStep
from kbert.train.wandb_logger import check_wandb
from kbert.utils import flags
from kbert.utils.locks import folder_lock
from kbert.utils.logging import log

# Steps are taken in calls of about this long, or of one step: the host then looks up.
CALL_SECONDS = 0.5
# So many steps in a row that are not finite are no accident.
NOT_FINITE_LIMIT = 100


def start_run(kind, config, output_dir, act, check=lambda config: None):
    """Makes a run and does something with it, holding the lock of its folder.

    Args:
        kind: subclass of `Run`. config: its settings. output_dir: the run's folder.
        act: function of the run. check: function of the settings that refuses what can be refused
            before anything is written.

    Returns:
        What `act` returns.

    Raises:
        UserError: Keras on another backend, files that cannot be written, and what `kind` and `act`
            raise.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"training needs Keras on TensorFlow; it is on {keras.backend.backend()}. Set "
            f"KERAS_BACKEND=tensorflow, or change ~/.keras/keras.json."
        )
    devices = find_devices(config)
    workers = devices.workers
    with workers.losses_reported(), contextlib.ExitStack() as stack:
        workers.check_same(settings=flags.as_dict(config))
        if workers.is_chief:
            check_wandb(config)
        check(config)
        run_dir = stack.enter_context(remote_run_dir(output_dir, kind.part, workers.is_chief))
        if workers.is_chief:
            stack.enter_context(folder_lock(run_dir.folder))
        else:
            stack.enter_context(contextlib.redirect_stdout(None))
        stack.enter_context(writing(run_dir.folder))
        run = kind(config, run_dir, devices, stack.enter_context(BackgroundWriter()))
        stack.callback(run.writer.end)
        return act(run)


class Run(abc.ABC):
    """A run in this process: the constructor finds where it starts, `run` takes the steps.

    A subclass says what is learnt from what: the class attributes and the methods up to
    `evaluation_line`.

    Attributes:
        part: folder inside the run's. program: to go on with. fixed: settings that make the run
            what it is; with another value of one it would be another run.
        patience: int, evaluations without a better one after which the run ends, or None.
        train_steps, eval_every_steps: int. bert_config, tokenizer, schedule, objective: set by
            `find`. step: int, steps taken. best: value of the best evaluation so far, or None.
    """

    part = program = patience = None
    fixed = ()

    @abc.abstractmethod
    def find(self, state):
        """Finds or makes what the run needs. state: of the checkpoint it goes on from, or None."""

    def check_model(self, bert_config, tokenizer):  # noqa: B027 - few have something to refuse
        """Refuses what cannot be trained, in `find` and before anything slow."""

    @abc.abstractmethod
    def make_model(self):
        """The model with fresh weights, and what of it is trained chosen."""

    @abc.abstractmethod
    def make_optimizer(self):
        """The optimizer, not built yet."""

    @abc.abstractmethod
    def initialize_from(self, folder):
        """Loads the weights of `--init_from`; returns where from, in words."""

    @abc.abstractmethod
    def dataset(self, batch_size, first, count, input_context):
        """tf.data of `count` batches for the replicas of a worker, from its batch `first` on.

        Args:
            batch_size: of a replica. input_context: tf.distribute.InputContext of the worker.
        """

    @abc.abstractmethod
    def identity(self):
        """What the run learns from and is judged by, as JSON: {"corpus": ..., "held_out": ...}."""

    @abc.abstractmethod
    def describe(self):
        """Says what is trained on what."""

    @abc.abstractmethod
    def evaluation(self):
        """Metrics on held-out data, and the value to judge by, greater is better; or None."""

    @abc.abstractmethod
    def train_line(self, metrics, eta_seconds):
        """A line on a window of steps."""

    @abc.abstractmethod
    def evaluation_line(self, metrics, better):
        """A line on an evaluation."""

    def finish(self, results):
        """What is left to do after the last step; returns the results."""
        return results

    def __init__(self, config, run_dir, devices, background):
        self.config = config
        self.run_dir = run_dir
        self.output_dir = run_dir.folder
        self.folder = self.output_dir / self.part
        profile = config.profile if devices.workers.is_chief else ""
        events = self.folder / "tensorboard"
        self.profiler = Profiler(profile, events, run_dir.shown(events))
        self.devices = devices
        self.background = background
        self.checkpoints = Checkpoints(self.folder / "checkpoint", config.keep_checkpoints)
        keras.utils.set_random_seed(config.seed)

        # 1. The run's own checkpoint, if there is one ...
        state = self.checkpoints.newest(log)
        if state:
            check_fixed(config, self.fixed, state, self.checkpoints.path(state["step"]))
        self.find(state)
        with devices.strategy.scope():
            self.model = self.make_model()
            optimizer = self.make_optimizer()
            optimizer.build(self.model.trainable_variables)
        self.model.bert.encoder.remat = config.remat
        self.pruning = None
        if config.sparsity:
            self.pruning = MagnitudePruning(self.model, config, self.train_steps)
        self.train_step = TrainStep(
            self.model, optimizer, self.schedule, devices, config, self.objective, self.pruning
        )
        if state:
            self.step = state["step"]
            self.restore(self.checkpoints.path(self.step))
            report_changes(config, self.identity(), state)
            origin = f"step {self.step} of {run_dir.shown(self.checkpoints.path(self.step))}"
        # 2. ... else the weights of --init_from ...
        elif config.init_from:
            self.step = 0
            origin = self.initialize_from(config.init_from)
        # 3. ... else from scratch.
        else:
            self.step = 0
            origin = f"scratch, with seed {config.seed}"
        # 4. Then `run` fits.
        self.window = MetricAccumulator(state["window"] if state else None)
        self.evaluation_due = bool(state and state["evaluation_due"])
        self.not_finite_steps = 0
        self.best, self.evaluations_since_best = None, 0
        if state and state["data"]["held_out"] == self.identity()["held_out"]:
            self.best = state["best"]
            self.evaluations_since_best = state["evaluations_since_best"]
        elif state:
            log("note: the held-out data has changed; the best weights are sought anew")
        self.throughput = ThroughputMeter()
        self.eval_seconds = 0.0
        self.profiler.check(self.step, self.train_steps)
        self.writer = RunWriter(self)
        devices.workers.check_same(text=self.identity(), checkpoint=self.step)
        self.describe()
        if self.pruning:
            log(self.pruning.describe())
        log(f"starting from {origin}")

    def restore(self, folder):
        """Loads the weights and the optimizer of a checkpoint."""
        self.model.load_pretrained(folder)
        variables = self.train_step.named_variables()
        # The loss scale: a run may change to mixed_float16 on the way.
        path = pathlib.Path(folder) / OPTIMIZER_FILE
        restore_arrays(path, variables, optional=["loss_scale/"])

    def run(self):
        """Takes the steps that are left; returns the last metrics, to the chief all of them."""
        config, workers = self.config, self.devices.workers
        results = {}
        if self.complete:
            log(f"this run is complete: step {self.step} of {self.train_steps}")
        self.writer.start()
        batches = self._batches(self.train_steps - self.step)
        stopping = False
        with stop_requests() as stop, self.profiler:
            self.profiler.at(self.step)
            if self.evaluation_due:  # the stop came before it
                results |= self._evaluate()
            while not self.complete and not stopping:
                self._take_steps(batches, self._steps_of_a_call())
                self.profiler.at(self.step)
                self.background.check()
                last = self.step == self.train_steps
                save = last or self.step % config.save_every_steps == 0
                if last or self.step % config.log_every_steps == 0:
                    results |= self._log()
                self.evaluation_due = last or self.step % self.eval_every_steps == 0
                stopping = workers.any(stop.received)
                if self.evaluation_due and (last or not stopping):
                    results |= self._evaluate()
                    stopping = workers.any(stop.received)
                if stopping or save or self.complete:
                    self._save()
        self.writer.close()
        if not self.complete:
            command = self.writer.resume_command()
            log(f"stopped and saved at step {self.step}. Go on with:\n  {command}")
        else:
            results = self.writer.final(results)
            log(
                f"done: weights in {self.run_dir.shown(self.folder / 'final')}, "
                f"curves in {self.run_dir.shown(self.folder / 'metrics.jsonl')}"
            )
        workers.wait()  # for the chief, which writes
        return results

    @property
    def complete(self):
        """Whether there is no step left to take."""
        stale = self.patience is not None and self.evaluations_since_best >= self.patience
        return self.step >= self.train_steps or stale

    def _batches(self, steps):
        """Iterator of the next global batches, of which each replica gets its part in order."""
        devices = self.devices
        rows = self.config.global_batch_size // devices.replicas
        first, count = self.step * devices.local_replicas, steps * devices.local_replicas
        dataset = self.dataset(rows, first, count, devices.input_context)
        if self.devices.workers.count > 1:
            # Else the workers tell each other before each step whether they have a batch.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            dataset = dataset.apply(endless)
        return iter(self.devices.strategy.distribute_datasets_from_function(lambda _: dataset))

    def _steps_of_a_call(self):
        config = self.config
        every = (config.log_every_steps, config.save_every_steps, self.eval_every_steps)
        left = min(self.train_steps - self.step, *(n - self.step % n for n in every))
        left = min(left, self.profiler.steps_left(self.step))
        steps = max(1, min(left, int(CALL_SECONDS / self.throughput.step_seconds)))
        return int(self.devices.workers.from_chief([steps])[0])  # clocks differ

    def _take_steps(self, batches, count):
        """Takes `count` steps and adds them to the window, in order.

        Raises:
            UserError: out of memory; a loss or gradient is not finite and `nonfinite` is "stop".
        """
        begin = time.perf_counter()
        try:
            rows, waited = self.train_step.take(
                batches, tf.constant(self.step, tf.int64), tf.constant(count, tf.int32)
            )
            rows, waited = rows.numpy(), float(waited)
        except tf.errors.ResourceExhaustedError as error:
            self.background.wait()  # what is being written may be the last checkpoint
            raise UserError(
                f"out of memory after step {self.step} ({too_much(error)}). "
                f"{smaller_slices(self.config, self.devices.replicas)}; the last checkpoint is "
                f"{self._last_checkpoint()}."
            ) from error
        seconds = time.perf_counter() - begin
        names = self.train_step.row
        self.throughput.add(seconds, count, float(rows[:, names.index("tokens")].sum()), waited)
        for row in rows:
            self.step += 1
            sums = dict(zip(names, row.tolist(), strict=True))
            self._check_finite(sums["not_finite"])
            self.window.add(sums)

    def _check_finite(self, not_finite):
        self.not_finite_steps = self.not_finite_steps + 1 if not_finite else 0
        if not not_finite:
            return
        if self.config.nonfinite == "skip" and self.not_finite_steps < NOT_FINITE_LIMIT:
            log(f"note: the loss or the gradient is not finite at step {self.step}: skipped")
            return
        self.background.wait()  # what is being written may be the last checkpoint
        hint = "or leave such steps out with --nonfinite=skip; "
        if self.config.nonfinite == "skip":
            hint = f"for {NOT_FINITE_LIMIT} steps in a row nothing was learnt; "
        raise UserError(
            f"the loss or the gradient is not finite at step {self.step}. Lower --learning_rate or "
            f"raise --warmup_steps, {hint}the last checkpoint is "
            f"{self._last_checkpoint()}."
        )

    def _last_checkpoint(self):
        if not self.devices.workers.is_chief:
            return f"the chief's, in {self.checkpoints.folder}"
        return self.checkpoints.last_good or "none yet"

    def _log(self):
        state = self.window.state
        metrics = self.objective.metrics(state)
        skipped = state["not_finite"] + state["overflows"]
        metrics["gradient_norm"] = state["gradient_norm"] / max(state["steps"] - skipped, 1)
        metrics["skipped_steps"] = skipped
        if self.train_step.loss_scale is not None:
            metrics["loss_scale"] = self.train_step.current_loss_scale()
        if self.pruning:
            metrics["sparsity"] = self.train_step.current_sparsity()
        metrics["learning_rate"] = float(self.schedule(self.step - 1))
        metrics["tokens_per_second"], step_seconds, metrics["input_wait"] = self.throughput.read()
        self.window = MetricAccumulator()
        self.writer.metrics(self.step, metrics)
        left = self.train_steps - self.step
        evaluations = -(-left // self.eval_every_steps)
        log(self.train_line(metrics, left * step_seconds + evaluations * self.eval_seconds))
        return metrics

    def _evaluate(self):
        """Returns the held-out metrics; keeps the weights if they are the best so far.

        The chief evaluates; the others are told the value that the weights are judged by.
        """
        workers = self.devices.workers
        self.background.wait()  # what is being written tells what the last evaluation found
        begin = time.perf_counter()
        evaluation = self.evaluation() if workers.is_chief else None
        metrics, value = evaluation or ({}, math.nan)
        evaluated, value = workers.from_chief([evaluation is not None, value])
        self.evaluation_due = False
        if not evaluated:
            return {}
        self.eval_seconds = max(0.0, time.perf_counter() - begin)
        self.writer.metrics(self.step, metrics)
        still_pruned = self.pruning is not None and self.step < self.pruning.end
        better = not still_pruned and (self.best is None or value > self.best)
        if workers.is_chief:
            log(self.evaluation_line(metrics, better))
        self.evaluations_since_best += not still_pruned
        if better:
            self.best, self.evaluations_since_best = float(value), 0
            self.writer.best()
        return metrics

    def _save(self):
        """Writes a checkpoint while the next steps are taken."""
        state = {
            "settings": flags.as_dict(self.config),
            "bert_config": self.bert_config.to_dict(),
            "data": self.identity(),
            "window": dict(self.window.state),
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
            "evaluation_due": self.evaluation_due,
        }
        self.writer.checkpoint(state)

    def write_pretrained(self, folder, weights):
        """Writes a folder for `from_pretrained`. weights: dict of name -> array."""
        shapes = {name: array.shape for name, array in weights.items()}
        weights = Tensors(shapes, weights.__getitem__)
        write_weights(folder, "kbert", self.bert_config, weights)
        self.tokenizer.save_pretrained(folder)
