"""The training loop of pretraining."""

import contextlib
import math
import pathlib
import signal
import time

import keras
import tensorflow as tf

from kbert import flags
from kbert.config import BertConfig
from kbert.data.pretraining import PretrainingExamples
from kbert.data.store import corpus_fingerprint
from kbert.errors import UserError
from kbert.model.models import BertForPreTraining
from kbert.train.checkpoint import Checkpoints, replace_folder, training_variables
from kbert.train.inputs import find_or_make
from kbert.train.losses import pretraining_loss, pretraining_sums
from kbert.train.metrics import Sums
from kbert.train.optimizer import make_optimizer
from kbert.train.report import MetricsWriter, say, time_text

# One for all runs, whatever their batch, so that their held-out figures can be compared.
EVAL_SEED = 1
EVAL_BATCH_SIZE = 32
EVAL_MASK_RATE = 0.15


def train(config, output_dir):
    """Pretrains a BERT, or goes on with a run that was stopped.

    Writes `OUTPUT_DIR/pretrain/` with `checkpoint`, `best` (lowest held-out MLM loss), `final`,
    `metrics.jsonl`, `tensorboard` and `run.flags`, and `OUTPUT_DIR/data/` with what it made from
    plain text. A run that goes on computes what it would have computed without the stop, to the
    last bit on the same machine.

    Args:
        config: PretrainConfig.
        output_dir: the run's folder.

    Returns:
        dict of the last metrics logged, and of the last evaluation with `eval_` before each name.

    Raises:
        UserError: inputs that cannot be used; a loss that is not finite (it names the step).
    """
    return _Run(config, pathlib.Path(output_dir)).run()


class _Run:
    """A run in this process: `__init__` finds where it starts, `run` takes the steps."""

    def __init__(self, config, output_dir):
        if keras.backend.backend() != "tensorflow":
            raise UserError(
                f"training needs Keras on TensorFlow; it is on {keras.backend.backend()}. Set "
                f"KERAS_BACKEND=tensorflow, or change ~/.keras/keras.json."
            )
        self.config = config
        self.folder = output_dir / "pretrain"
        self.checkpoints = Checkpoints(self.folder / "checkpoint", config.keep_checkpoints)
        keras.utils.set_random_seed(config.seed)

        # 1. The run's own checkpoint, if there is one ...
        state = self.checkpoints.newest(say)
        saved_config = BertConfig(**state["bert_config"]) if state else None
        inputs = find_or_make(config, output_dir / "data", saved_config, say)
        self.inputs = inputs
        self.examples = self._examples(config)
        self.model = BertForPreTraining(inputs.bert_config, dtype=config.precision)
        self.optimizer = make_optimizer(config)
        self.optimizer.build(self.model.trainable_variables)
        self.variables = training_variables(self.model, self.optimizer)
        if state:
            self.step = state["step"]
            self.checkpoints.restore(self.step, self.variables)
            self._report_changes(state)
            origin = f"step {self.step} of {self.checkpoints.path(self.step)}"
        # 2. ... else the weights of --init_from, with a fresh optimizer ...
        elif config.init_from:
            self.step = 0
            self.model.load_pretrained(config.init_from)
            origin = f"the weights of {config.init_from}, with a fresh optimizer"
        # 3. ... else from scratch.
        else:
            self.step = 0
            origin = f"scratch, with seed {config.seed}"
        # 4. Then `run` fits.
        self.window = Sums(state["window"] if state else None)
        self.best_mlm_loss = state["best_mlm_loss"] if state else math.inf
        self._describe(origin)

    def _examples(self, config):
        return PretrainingExamples(
            self.inputs.corpus,
            config.max_seq_length,
            config.max_predictions_per_seq,
            config.mask_rate,
            config.whole_word_mask,
            config.short_seq_prob,
            config.seed,
        )

    def _describe(self, origin):
        config, corpus, bert = self.config, self.inputs.corpus, self.inputs.bert_config
        windows = self.examples.windows
        views = windows.views_per_token(config.short_seq_prob)
        say(
            f"model: {bert.num_hidden_layers} layers, width {bert.hidden_size}, "
            f"{self.model.count_params() / 1e6:.1f} M parameters, {config.precision}, "
            f"vocabulary of {bert.vocab_size:,}"
        )
        say(
            f"text: {corpus.documents:,} documents, {corpus.tokens:,} tokens; an epoch has "
            f"{windows.count:,} examples ({windows.count / config.global_batch_size:,.0f} steps) "
            f"and shows a token {views:.2f} times"
        )
        if self.inputs.eval_corpus is None:
            say("no --eval_input: no held-out loss, and no best weights are kept")
        say(f"starting from {origin}")

    def _report_changes(self, state):
        current = flags.as_dict(self.config)
        for name, value in state["settings"].items():
            if name in current and current[name] != value:
                say(f"note: --{name} is {current[name]} now; before the stop it was {value}")
        if corpus_fingerprint(self.inputs.corpus) != state["corpus"]:
            say("note: the text has changed since the stop; from here on other examples are seen")

    def run(self):
        """Takes the steps that are left; returns the last metrics."""
        config = self.config
        results = {}
        if self.step >= config.train_steps:
            say(f"this run is complete: step {self.step} of {config.train_steps}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_flagfile()
        writer = MetricsWriter(self.folder, self.step)
        dataset = self.examples.dataset(
            config.global_batch_size, self.step, config.train_steps - self.step
        )
        train_step = tf.function(self._train_step)
        pending, window_begins = [], time.perf_counter()
        with _stop_requests() as stop:
            for features in dataset:
                pending.append(train_step(features))
                self.step += 1
                last = self.step == config.train_steps
                log = last or self.step % config.log_every_steps == 0
                save = last or self.step % config.save_every_steps == 0
                evaluate = last or self.step % config.eval_every_steps == 0
                stopping = stop.requested  # once, so that a stop is never taken without saving
                if log or save or evaluate or stopping:
                    tokens, steps = self._collect(pending), len(pending)
                    pending = []
                if log:
                    seconds = time.perf_counter() - window_begins
                    results |= self._log(writer, tokens / seconds, seconds / steps)
                if evaluate and self.inputs.eval_corpus is not None:
                    results |= self._evaluate(writer)
                if save or stopping:
                    self._save()
                if log or save or evaluate:
                    window_begins = time.perf_counter()
                if stopping:
                    break
        writer.close()
        if self.step < config.train_steps:
            say(f"stopped and saved at step {self.step}. Go on with:\n  {self._resume_command()}")
            return results
        replace_folder(self.folder / "final", self._write_weights)
        say(f"done: weights in {self.folder / 'final'}, curves in {self.folder / 'metrics.jsonl'}")
        return results

    def _train_step(self, features):
        """One update. Returns the sums of the batch and the norm of the gradient, scalars."""
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            sums = pretraining_sums(self.model(features, training=True), features)
            loss = pretraining_loss(sums)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        gradients, norm = tf.clip_by_global_norm(
            [tf.convert_to_tensor(gradient) for gradient in gradients], self.config.clip_norm
        )
        self.optimizer.apply(gradients, variables)
        return {**sums, "gradient_norm": norm}

    def _collect(self, pending):
        """Adds steps to the window, in order; returns their tokens.

        Raises:
            UserError: a loss or gradient is not finite.
        """
        first = self.step - len(pending) + 1
        tokens = 0.0
        for step, sums in enumerate(pending, start=first):
            sums = {name: float(value) for name, value in sums.items()}
            if not all(map(math.isfinite, sums.values())):
                saved = self.checkpoints.steps()
                good = self.checkpoints.path(saved[-1]) if saved else "none yet"
                raise UserError(
                    f"the loss or the gradient is not finite at step {step}. Lower "
                    f"--learning_rate or raise --warmup_steps; the last checkpoint is {good}."
                )
            tokens += sums["tokens"]
            self.window.add(sums)
        return tokens

    def _log(self, writer, tokens_per_second, step_seconds):
        metrics = self.window.metrics()
        self.window = Sums()
        metrics["learning_rate"] = float(self.optimizer.learning_rate)
        metrics["tokens_per_second"] = tokens_per_second
        writer.write(self.step, metrics)
        eta = time_text((self.config.train_steps - self.step) * step_seconds)
        say(
            f"step {self.step:,}/{self.config.train_steps:,} | loss {metrics['loss']:.3f} | "
            f"mlm {metrics['mlm_loss']:.3f} acc {metrics['mlm_accuracy']:.3f} | "
            f"nsp {metrics['nsp_loss']:.3f} acc {metrics['nsp_accuracy']:.3f} | "
            f"lr {metrics['learning_rate']:.2e} | {tokens_per_second:,.0f} tokens/s | ETA {eta}"
        )
        return metrics

    def _evaluate(self, writer):
        """Held-out metrics on pairs and masks that are the same in every run."""
        config, corpus = self.config, self.inputs.eval_corpus
        examples = PretrainingExamples(
            corpus, config.max_seq_length, None, EVAL_MASK_RATE, False, 0.0, EVAL_SEED
        )
        count = min(config.eval_examples, examples.windows.count)
        totals = Sums()
        for features in examples.dataset(EVAL_BATCH_SIZE, steps=max(1, count // EVAL_BATCH_SIZE)):
            totals.add(self._eval_step(features))
        metrics = {f"eval_{name}": value for name, value in totals.metrics().items()}
        metrics["eval_mlm_perplexity"] = math.exp(min(metrics["eval_mlm_loss"], 700))
        metrics["eval_unigram_entropy"] = corpus.unigram_entropy()
        writer.write(self.step, metrics)
        better = metrics["eval_mlm_loss"] < self.best_mlm_loss
        say(
            f"held out at step {self.step:,} | mlm {metrics['eval_mlm_loss']:.3f} "
            f"(unigram entropy {metrics['eval_unigram_entropy']:.3f}) "
            f"acc {metrics['eval_mlm_accuracy']:.3f} "
            f"perplexity {metrics['eval_mlm_perplexity']:.1f} | "
            f"nsp {metrics['eval_nsp_loss']:.3f} acc {metrics['eval_nsp_accuracy']:.3f}"
            f"{' | best so far' if better else ''}"
        )
        if better:
            self.best_mlm_loss = metrics["eval_mlm_loss"]
            replace_folder(self.folder / "best", self._write_weights)
        return metrics

    @tf.function
    def _eval_step(self, features):
        return pretraining_sums(self.model(features, training=False), features)

    def _save(self):
        state = {
            "settings": flags.as_dict(self.config),
            "bert_config": self.inputs.bert_config.to_dict(),
            "corpus": corpus_fingerprint(self.inputs.corpus),
            "window": self.window.state,
            "best_mlm_loss": self.best_mlm_loss,
        }
        self.checkpoints.save(self.step, self.variables, state)

    def _write_weights(self, folder):
        self.model.save_pretrained(folder)
        self.inputs.tokenizer.save_pretrained(folder)

    def _write_flagfile(self):
        header = f"replays this run: {self._resume_command()}"
        text = flags.as_flagfile(self.config, header) + f"--output_dir={self.folder.parent}\n"
        (self.folder / "run.flags").write_text(text, encoding="utf-8")

    def _resume_command(self):
        return f"python -m kbert.pretrain --flagfile={self.folder / 'run.flags'}"


class _Stop:
    requested = False


@contextlib.contextmanager
def _stop_requests():
    """Makes Ctrl-C and SIGTERM a request to stop after the step under way; a second one stops."""
    stop, before = _Stop(), {}

    def request(number, frame):
        stop.requested = True
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: signals are the caller's
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
