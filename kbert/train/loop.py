"""The training loop of pretraining."""

import math
import pathlib
import shlex
import time

import keras
import numpy as np
import tensorflow as tf

from kbert import flags
from kbert.config import BertConfig
from kbert.data.pretraining import PretrainingExamples
from kbert.data.store import corpus_fingerprint
from kbert.errors import UserError
from kbert.model.models import BertForPreTraining
from kbert.model.weights import Tensors, write_weights
from kbert.model.weights.native import write_arrays
from kbert.train import report
from kbert.train.checkpoint import (
    OPTIMIZER_FILE,
    BackgroundWriter,
    Checkpoints,
    is_checkpoint,
    recover_folder,
    replace_folder,
    restore_arrays,
    verified_state,
)
from kbert.train.distribution import find_devices
from kbert.train.estimate import estimate_text
from kbert.train.evaluation import HeldOut
from kbert.train.guards import folder_lock, stop_requests
from kbert.train.inputs import check_inputs, find_or_make
from kbert.train.metrics import Sums
from kbert.train.optimizer import make_optimizer, make_schedule
from kbert.train.report import MetricsWriter, Pace, say
from kbert.train.step import ROW, TrainStep

# A run is a function of these: with another value it would be another run.
FIXED = (
    *("max_seq_length", "max_predictions_per_seq", "mask_rate", "whole_word_mask"),
    *("short_seq_prob", "global_batch_size", "optimizer", "seed"),
)
# Steps are taken in calls of about this long, or of one step: the host then looks up.
CALL_SECONDS = 0.5
DRY_RUN_STEPS = 3
# So many steps in a row that are not finite are no accident.
NOT_FINITE_LIMIT = 100


def train(config, output_dir, dry_run=False):
    """Pretrains a BERT, or goes on with a run that was stopped.

    Writes `OUTPUT_DIR/pretrain/` with `checkpoint`, `best` (lowest held-out MLM loss), `final`,
    `metrics.jsonl`, `tensorboard` and `run.flags`, and `OUTPUT_DIR/data/` with what it made from
    plain text. A run that goes on computes what it would have computed without the stop, to the
    last bit on the same devices; on GPUs with `deterministic`.

    Args:
        config: PretrainConfig.
        output_dir: the run's folder.
        dry_run: take three steps, print what the run would take, and write nothing but `data` and
            the lock.

    Returns:
        dict of the last metrics logged, and of the last evaluation with `eval_` before each name.

    Raises:
        UserError: inputs that cannot be used; flags that contradict the checkpoint, the devices or
            each other; a folder in use; a loss that is not finite (it names the step); files that
            cannot be written.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"training needs Keras on TensorFlow; it is on {keras.backend.backend()}. Set "
            f"KERAS_BACKEND=tensorflow, or change ~/.keras/keras.json."
        )
    check_inputs(config)
    devices = find_devices(config)
    output_dir = pathlib.Path(output_dir)
    with folder_lock(output_dir), BackgroundWriter() as background:
        run = _Run(config, output_dir, devices, background)
        return run.rehearse() if dry_run else run.run()


class _Run:
    """A run in this process: `__init__` finds where it starts, `run` takes the steps."""

    def __init__(self, config, output_dir, devices, background):
        self.config = config
        self.devices = devices
        self.background = background
        self.folder = output_dir / "pretrain"
        self.checkpoints = Checkpoints(self.folder / "checkpoint", config.keep_checkpoints)
        keras.utils.set_random_seed(config.seed)

        # 1. The run's own checkpoint, if there is one ...
        state = self.checkpoints.newest(say)
        if state:
            self._check_settings(state)
        saved_config = BertConfig(**state["bert_config"]) if state else None
        inputs = find_or_make(config, output_dir / "data", saved_config, say)
        self.inputs = inputs
        self.examples = PretrainingExamples(
            inputs.corpus,
            config.max_seq_length,
            config.max_predictions_per_seq,
            config.mask_rate,
            config.whole_word_mask,
            config.short_seq_prob,
            config.seed,
        )
        self.schedule = make_schedule(config)
        with devices.strategy.scope():
            self.model = BertForPreTraining(inputs.bert_config, dtype=config.precision)
            optimizer = make_optimizer(config, self.schedule)
            optimizer.build(self.model.trainable_variables)
        self.model.bert.encoder.remat = config.remat
        self.train_step = TrainStep(self.model, optimizer, self.schedule, devices, config)
        if state:
            self.step = state["step"]
            self._restore(self.checkpoints.path(self.step))
            self._report_changes(state)
            origin = f"step {self.step} of {self.checkpoints.path(self.step)}"
        # 2. ... else the weights of --init_from ...
        elif config.init_from:
            self.step = 0
            origin = self._initialize_from(config.init_from)
        # 3. ... else from scratch.
        else:
            self.step = 0
            origin = f"scratch, with seed {config.seed}"
        # 4. Then `run` fits.
        self.window = Sums(state["window"] if state else None)
        self.evaluation_due = bool(state and state["evaluation_due"])
        self.not_finite_steps = 0
        self.best_mlm_loss = math.inf
        if state and state["held_out"] == self._held_out_identity():
            self.best_mlm_loss = state["best_mlm_loss"]
        elif state:
            say("note: the held-out text has changed; the best loss is sought anew")
        self.held_out = None
        if inputs.eval_corpus is not None:
            self.held_out = HeldOut(
                self.model, inputs.eval_corpus, config.max_seq_length, config.eval_examples
            )
        self.pace = Pace()
        self.eval_seconds = 0.0
        self._describe(origin)

    def _check_settings(self, state):
        path = self.checkpoints.path(state["step"])
        for name in FIXED:
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
        if corpus_fingerprint(self.inputs.corpus) != state["corpus"]:
            say("note: the text has changed since the stop; from here on other examples are seen")

    def _held_out_identity(self):
        corpus = self.inputs.eval_corpus
        return corpus and [corpus_fingerprint(corpus), self.config.eval_examples]

    def _initialize_from(self, folder):
        theirs = verified_state(folder)["settings"]["optimizer"] if is_checkpoint(folder) else None
        if theirs == self.config.optimizer:
            self._restore(folder)
            return f"the weights and the optimizer of {folder}"
        self.model.load_pretrained(folder)
        why = f" (it was trained with {theirs})" if theirs else ""
        return f"the weights of {folder}, with a fresh optimizer{why}"

    def _restore(self, folder):
        self.model.load_pretrained(folder)
        variables = self.train_step.named_variables()
        # The loss scale: a run may change to mixed_float16 on the way.
        path = pathlib.Path(folder) / OPTIMIZER_FILE
        restore_arrays(path, variables, optional=["loss_scale/"])

    def _describe(self, origin):
        config, inputs = self.config, self.inputs
        parameters = self.model.count_params()
        say(report.model_line(inputs.bert_config, parameters, config.precision))
        say(self.devices.describe(config))
        say(report.text_line(inputs.corpus, self.examples.windows, config))
        if self.inputs.eval_corpus is None:
            say("no --eval_input: no held-out loss, and no best weights are kept")
        say(f"starting from {origin}")

    def run(self):
        """Takes the steps that are left; returns the last metrics."""
        config = self.config
        results = {}
        if self.step >= config.train_steps:
            say(f"this run is complete: step {self.step} of {config.train_steps}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_flagfile()
        for name in ("best", "final"):
            recover_folder(self.folder / name)
        writer = MetricsWriter(self.folder, self.step)
        batches = self._batches(config.train_steps - self.step)
        stopping = False
        with stop_requests() as stop:
            if self.evaluation_due and self.held_out:  # the stop came before it
                results |= self._evaluate(writer)
            while self.step < config.train_steps and not stopping:
                self._take_steps(batches, self._steps_of_a_call())
                self.background.check()
                last = self.step == config.train_steps
                save = last or self.step % config.save_every_steps == 0
                if last or self.step % config.log_every_steps == 0:
                    results |= self._log(writer)
                self.evaluation_due = last or self.step % config.eval_every_steps == 0
                if self.evaluation_due and self.held_out and (last or not stop.received):
                    results |= self._evaluate(writer)
                stopping = stop.received  # once, so that no stop is taken without saving
                if stopping or save:
                    self._save()
        self.background.wait()
        writer.close()
        if self.step < config.train_steps:
            say(f"stopped and saved at step {self.step}. Go on with:\n  {self._resume_command()}")
            return results
        self._replace("final", self._on_host(self.model.named_weights()))
        say(f"done: weights in {self.folder / 'final'}, curves in {self.folder / 'metrics.jsonl'}")
        return results

    def rehearse(self):
        """Takes a few steps to say what the run would take; writes nothing."""
        batches = self._batches(1 + DRY_RUN_STEPS)
        for count in (1, DRY_RUN_STEPS):  # the first one compiles
            self._take_steps(batches, count)
        say(
            estimate_text(
                self.config,
                self.inputs.bert_config,
                self.model.count_params(),
                self.devices,
                self.examples,
                self.pace.step_seconds,
            )
        )
        return {}

    def _batches(self, steps):
        """Iterator of the next global batches, each dealt to the replicas in order."""
        replicas = self.devices.replicas
        dataset = self.examples.dataset(
            self.config.global_batch_size // replicas, self.step * replicas, steps * replicas
        )
        return iter(self.devices.strategy.distribute_datasets_from_function(lambda _: dataset))

    def _steps_of_a_call(self):
        config = self.config
        every = (config.log_every_steps, config.save_every_steps, config.eval_every_steps)
        left = min(config.train_steps - self.step, *(n - self.step % n for n in every))
        return max(1, min(left, int(CALL_SECONDS / self.pace.step_seconds)))

    def _take_steps(self, batches, count):
        """Takes `count` steps and adds them to the window, in order.

        Raises:
            UserError: a loss or gradient is not finite, and `nonfinite` is "stop".
        """
        begin = time.perf_counter()
        rows = self.train_step.take(
            batches, tf.constant(self.step, tf.int64), tf.constant(count, tf.int32)
        ).numpy()
        seconds = time.perf_counter() - begin
        self.pace.add(seconds, count, float(rows[:, ROW.index("tokens")].sum()))
        for row in rows:
            self.step += 1
            sums = dict(zip(ROW, row.tolist(), strict=True))
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
        state, config = self.window.state, self.config
        metrics = self.window.metrics()
        skipped = state["not_finite"] + state["overflows"]
        metrics["gradient_norm"] = state["gradient_norm"] / max(state["steps"] - skipped, 1)
        metrics["skipped_steps"] = skipped
        if self.train_step.loss_scale is not None:
            metrics["loss_scale"] = float(self._on_host(self.train_step.loss_scale))
        metrics["learning_rate"] = float(self.schedule(self.step - 1))
        metrics["tokens_per_second"], step_seconds = self.pace.read()
        self.window = Sums()
        writer.write(self.step, metrics)
        left = config.train_steps - self.step
        evaluations = -(-left // config.eval_every_steps)
        eta = left * step_seconds + evaluations * self.eval_seconds
        say(report.train_line(self.step, config.train_steps, metrics, eta))
        return metrics

    def _evaluate(self, writer):
        """Returns the held-out metrics; keeps the weights if they are the best so far."""
        begin = time.perf_counter()
        metrics = self.held_out.metrics()
        self.eval_seconds = time.perf_counter() - begin
        self.evaluation_due = False
        writer.write(self.step, metrics)
        better = metrics["eval_mlm_loss"] < self.best_mlm_loss
        say(report.held_out_line(self.step, metrics, better))
        if better:
            self.best_mlm_loss = metrics["eval_mlm_loss"]
            self.background.wait()  # before the copies are made: there is memory for one of them
            weights = self._on_host(self.model.named_weights())
            self.background.start(lambda: self._replace("best", weights))
        return metrics

    def _save(self):
        """Writes a checkpoint while the next steps are taken."""
        self.background.wait()
        weights = self._on_host(self.model.named_weights())
        optimizer = self._on_host(self.train_step.named_variables())
        state = {
            "settings": flags.as_dict(self.config),
            "bert_config": self.inputs.bert_config.to_dict(),
            "corpus": corpus_fingerprint(self.inputs.corpus),
            "window": dict(self.window.state),
            "held_out": self._held_out_identity(),
            "best_mlm_loss": self.best_mlm_loss,
            "evaluation_due": self.evaluation_due,
        }

        def write(folder):
            self._write_pretrained(folder, weights)
            write_arrays(folder / OPTIMIZER_FILE, optimizer)

        step = self.step
        self.background.start(lambda: self.checkpoints.save(step, state, write))

    def _on_host(self, variables):
        """Copies of Keras variables as numpy arrays: of one, or of a dict of them."""
        return tf.nest.map_structure(
            lambda variable: np.array(
                self.devices.strategy.experimental_local_results(variable.value)[0].numpy()
            ),
            variables,
        )

    def _replace(self, name, weights):
        replace_folder(self.folder / name, lambda path: self._write_pretrained(path, weights))

    def _write_pretrained(self, folder, weights):
        shapes = {name: array.shape for name, array in weights.items()}
        weights = Tensors(shapes, weights.__getitem__)
        write_weights(folder, "kbert", self.inputs.bert_config, weights)
        self.inputs.tokenizer.save_pretrained(folder)

    def _write_flagfile(self):
        header = f"replays this run: {self._resume_command()}"
        text = flags.as_flagfile(self.config, header) + f"--output_dir={self.folder.parent}\n"
        scratch = self.folder / ".run.flags.partial"
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self.folder / "run.flags")

    def _resume_command(self):
        return f"python -m kbert.pretrain --flagfile={shlex.quote(str(self.folder / 'run.flags'))}"
