"""The loop of every training program: starts, takes steps, logs, evaluates, saves, goes on."""

import abc
import pathlib
import shlex
import time

import keras
import numpy as np
import tensorflow as tf

from kbert import flags
from kbert.errors import UserError
from kbert.model.weights import Tensors, write_weights
from kbert.model.weights.native import write_arrays
from kbert.train.checkpoint import (
    OPTIMIZER_FILE,
    BackgroundWriter,
    Checkpoints,
    recover_folder,
    replace_folder,
    restore_arrays,
)
from kbert.train.distribution import find_devices
from kbert.train.guards import folder_lock, stop_requests
from kbert.train.metrics import Sums
from kbert.train.profile import Profiler
from kbert.train.report import MetricsWriter, Pace, say
from kbert.train.step import TrainStep

# Steps are taken in calls of about this long, or of one step: the host then looks up.
CALL_SECONDS = 0.5
# So many steps in a row that are not finite are no accident.
NOT_FINITE_LIMIT = 100


def start_run(kind, config, output_dir, act):
    """Makes a run and does something with it, holding the lock of its folder.

    Args:
        kind: subclass of `Run`. config: its settings. output_dir: the run's folder.
        act: function of the run.

    Returns:
        What `act` returns.

    Raises:
        UserError: Keras on another backend, and what `kind` and `act` raise.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"training needs Keras on TensorFlow; it is on {keras.backend.backend()}. Set "
            f"KERAS_BACKEND=tensorflow, or change ~/.keras/keras.json."
        )
    devices = find_devices(config)
    output_dir = pathlib.Path(output_dir)
    with folder_lock(output_dir), BackgroundWriter() as background:
        return act(kind(config, output_dir, devices, background))


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
    def dataset(self, batch_size, first, count):
        """tf.data of `count` batches for a replica, from batch `first` of `batch_size` on."""

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

    def __init__(self, config, output_dir, devices, background):
        self.config = config
        self.profiler = Profiler(config.profile, output_dir / self.part / "tensorboard")
        self.devices = devices
        self.background = background
        self.output_dir = output_dir
        self.folder = output_dir / self.part
        self.checkpoints = Checkpoints(self.folder / "checkpoint", config.keep_checkpoints)
        keras.utils.set_random_seed(config.seed)

        # 1. The run's own checkpoint, if there is one ...
        state = self.checkpoints.newest(say)
        if state:
            self._check_settings(state)
        self.find(state)
        with devices.strategy.scope():
            self.model = self.make_model()
            optimizer = self.make_optimizer()
            optimizer.build(self.model.trainable_variables)
        self.model.bert.encoder.remat = config.remat
        self.train_step = TrainStep(
            self.model, optimizer, self.schedule, devices, config, self.objective
        )
        if state:
            self.step = state["step"]
            self.restore(self.checkpoints.path(self.step))
            self._report_changes(state)
            origin = f"step {self.step} of {self.checkpoints.path(self.step)}"
        # 2. ... else the weights of --init_from ...
        elif config.init_from:
            self.step = 0
            origin = self.initialize_from(config.init_from)
        # 3. ... else from scratch.
        else:
            self.step = 0
            origin = f"scratch, with seed {config.seed}"
        # 4. Then `run` fits.
        self.window = Sums(state["window"] if state else None)
        self.evaluation_due = bool(state and state["evaluation_due"])
        self.not_finite_steps = 0
        self.best, self.evaluations_since_best = None, 0
        if state and state["data"]["held_out"] == self.identity()["held_out"]:
            self.best = state["best"]
            self.evaluations_since_best = state["evaluations_since_best"]
        elif state:
            say("note: the held-out data has changed; the best weights are sought anew")
        self.pace = Pace()
        self.eval_seconds = 0.0
        self.profiler.check(self.step, self.train_steps)
        self.describe()
        say(f"starting from {origin}")

    def _check_settings(self, state):
        path = self.checkpoints.path(state["step"])
        for name in self.fixed:
            now, before = getattr(self.config, name), state["settings"][name]
            if now != before:
                raise UserError(
                    f"{name} is {now} now, but {path} was written with {before}. Go on with the "
                    f"old value, or start another run: --init_from={path} --output_dir=ANOTHER."
                )

    def _report_changes(self, state):
        current = flags.as_dict(self.config)
        for name, value in state["settings"].items():
            if name in current and current[name] != value:
                say(f"note: --{name} is {current[name]} now; before the stop it was {value}")
        if self.identity()["corpus"] != state["data"]["corpus"]:
            say("note: the text has changed since the stop; from here on other examples are seen")

    def restore(self, folder):
        """Loads the weights and the optimizer of a checkpoint."""
        self.model.load_pretrained(folder)
        variables = self.train_step.named_variables()
        # The loss scale: a run may change to mixed_float16 on the way.
        path = pathlib.Path(folder) / OPTIMIZER_FILE
        restore_arrays(path, variables, optional=["loss_scale/"])

    def run(self):
        """Takes the steps that are left; returns the last metrics."""
        config = self.config
        results = {}
        if self.complete:
            say(f"this run is complete: step {self.step} of {self.train_steps}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_flagfile()
        for name in ("best", "final"):
            recover_folder(self.folder / name)
        writer = MetricsWriter(self.folder, self.step)
        batches = self._batches(self.train_steps - self.step)
        stopping = False
        with stop_requests() as stop, self.profiler:
            self.profiler.at(self.step)
            if self.evaluation_due:  # the stop came before it
                results |= self._evaluate(writer)
            while not self.complete and not stopping:
                self._take_steps(batches, self._steps_of_a_call())
                self.profiler.at(self.step)
                self.background.check()
                last = self.step == self.train_steps
                save = last or self.step % config.save_every_steps == 0
                if last or self.step % config.log_every_steps == 0:
                    results |= self._log(writer)
                self.evaluation_due = last or self.step % self.eval_every_steps == 0
                if self.evaluation_due and (last or not stop.received):
                    results |= self._evaluate(writer)
                stopping = stop.received  # once, so that no stop is taken without saving
                if stopping or save or self.complete:
                    self._save()
        self.background.wait()
        writer.close()
        if not self.complete:
            say(f"stopped and saved at step {self.step}. Go on with:\n  {self._resume_command()}")
            return results
        weights = self._plain_weights()
        results = self.finish(results)
        self._replace("final", weights)
        say(f"done: weights in {self.folder / 'final'}, curves in {self.folder / 'metrics.jsonl'}")
        return results

    @property
    def complete(self):
        """Whether there is no step left to take."""
        stale = self.patience is not None and self.evaluations_since_best >= self.patience
        return self.step >= self.train_steps or stale

    def _batches(self, steps):
        """Iterator of the next global batches, each dealt to the replicas in order."""
        replicas = self.devices.replicas
        dataset = self.dataset(
            self.config.global_batch_size // replicas, self.step * replicas, steps * replicas
        )
        return iter(self.devices.strategy.distribute_datasets_from_function(lambda _: dataset))

    def _steps_of_a_call(self):
        config = self.config
        every = (config.log_every_steps, config.save_every_steps, self.eval_every_steps)
        left = min(self.train_steps - self.step, *(n - self.step % n for n in every))
        left = min(left, self.profiler.steps_left(self.step))
        return max(1, min(left, int(CALL_SECONDS / self.pace.step_seconds)))

    def _take_steps(self, batches, count):
        """Takes `count` steps and adds them to the window, in order.

        Raises:
            UserError: a loss or gradient is not finite, and `nonfinite` is "stop".
        """
        begin = time.perf_counter()
        rows, waited = self.train_step.take(
            batches, tf.constant(self.step, tf.int64), tf.constant(count, tf.int32)
        )
        rows, waited = rows.numpy(), float(waited)
        seconds = time.perf_counter() - begin
        names = self.train_step.row
        self.pace.add(seconds, count, float(rows[:, names.index("tokens")].sum()), waited)
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
            say(f"note: the loss or the gradient is not finite at step {self.step}: skipped")
            return
        self.background.wait()  # what is being written may be the last checkpoint
        hint = "or leave such steps out with --nonfinite=skip; "
        if self.config.nonfinite == "skip":
            hint = f"for {NOT_FINITE_LIMIT} steps in a row nothing was learnt; "
        raise UserError(
            f"the loss or the gradient is not finite at step {self.step}. Lower --learning_rate or "
            f"raise --warmup_steps, {hint}the last checkpoint is "
            f"{self.checkpoints.last_good or 'none yet'}."
        )

    def _log(self, writer):
        state = self.window.state
        metrics = self.objective.metrics(state)
        skipped = state["not_finite"] + state["overflows"]
        metrics["gradient_norm"] = state["gradient_norm"] / max(state["steps"] - skipped, 1)
        metrics["skipped_steps"] = skipped
        if self.train_step.loss_scale is not None:
            metrics["loss_scale"] = float(self._on_host(self.train_step.loss_scale))
        metrics["learning_rate"] = float(self.schedule(self.step - 1))
        metrics["tokens_per_second"], step_seconds, metrics["input_wait"] = self.pace.read()
        self.window = Sums()
        writer.write(self.step, metrics)
        left = self.train_steps - self.step
        evaluations = -(-left // self.eval_every_steps)
        say(self.train_line(metrics, left * step_seconds + evaluations * self.eval_seconds))
        return metrics

    def _evaluate(self, writer):
        """Returns the held-out metrics; keeps the weights if they are the best so far."""
        self.background.wait()  # what is being written tells what the last evaluation found
        begin = time.perf_counter()
        evaluation = self.evaluation()
        self.evaluation_due = False
        if evaluation is None:
            return {}
        metrics, value = evaluation
        self.eval_seconds = time.perf_counter() - begin
        writer.write(self.step, metrics)
        better = self.best is None or value > self.best
        say(self.evaluation_line(metrics, better))
        self.evaluations_since_best += 1
        if better:
            self.best, self.evaluations_since_best = value, 0
            self.background.wait()  # before the copies are made: there is memory for one of them
            weights = self._plain_weights()
            self.background.start(lambda: self._replace("best", weights))
        return metrics

    def _save(self):
        """Writes a checkpoint while the next steps are taken."""
        self.background.wait()
        weights = self._plain_weights()
        optimizer = self._on_host(self.train_step.named_variables())
        state = {
            "settings": flags.as_dict(self.config),
            "bert_config": self.bert_config.to_dict(),
            "data": self.identity(),
            "window": dict(self.window.state),
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
            "evaluation_due": self.evaluation_due,
        }

        def write(folder):
            self.write_pretrained(folder, weights)
            write_arrays(folder / OPTIMIZER_FILE, optimizer)

        step = self.step
        self.background.start(lambda: self.checkpoints.save(step, state, write))

    def _plain_weights(self):
        """Copies of the weights, adapters merged into the matrices they belong to."""
        weights = self._on_host(self.model.named_weights())
        for name, (a, b, scale) in self.model.adapters().items():
            weights[name] += scale * (self._on_host(a) @ self._on_host(b))
        return weights

    def _on_host(self, variables):
        """Copies of Keras variables as numpy arrays: of one, or of a dict of them."""
        return tf.nest.map_structure(
            lambda variable: np.array(
                self.devices.strategy.experimental_local_results(variable.value)[0].numpy()
            ),
            variables,
        )

    def _replace(self, name, weights):
        replace_folder(self.folder / name, lambda path: self.write_pretrained(path, weights))

    def write_pretrained(self, folder, weights):
        """Writes a folder for `from_pretrained`. weights: dict of name -> array."""
        shapes = {name: array.shape for name, array in weights.items()}
        weights = Tensors(shapes, weights.__getitem__)
        write_weights(folder, "kbert", self.bert_config, weights)
        self.tokenizer.save_pretrained(folder)

    def _write_flagfile(self):
        header = f"replays this run: {self._resume_command()}"
        text = flags.as_flagfile(self.config, header) + f"--output_dir={self.folder.parent}\n"
        scratch = self.folder / ".run.flags.partial"
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self.folder / "run.flags")

    def _resume_command(self):
        return f"python -m {self.program} --flagfile={shlex.quote(str(self.folder / 'run.flags'))}"
