"""Pretraining: MLM and NSP, or MLM alone, on a corpus."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from kbert.corpus.corpus import corpus_fingerprint
from kbert.corpus.input_checks import check_inputs
from kbert.data.pretraining_batches import PretrainingExamples
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.model.models import BertForMaskedLM, BertForPreTraining
from kbert.tasks.losses import soft_losses
from kbert.train import report
from kbert.train.checkpoint import is_checkpoint, verified_state
from kbert.train.cost_estimate import forward_flops, memory_line, step_flops
from kbert.train.evaluation import HeldOutEvaluation
from kbert.train.inputs import load_or_create_inputs
from kbert.train.losses import MaskedLMObjective, PretrainingObjective
from kbert.train.masked_words import MaskedWords
from kbert.train.schedule import Schedule, WarmupPolynomialDecay, make_schedule
from kbert.train.start import start_run
from kbert.train.time_budget import with_saved_steps, with_timed_steps
from kbert.train.workload import Workload
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.config import BertConfig
    from kbert.corpus import Corpus
    from kbert.settings import PretrainConfig
    from kbert.tokenizer import BertTokenizer
    from kbert.train.callbacks import Callback
    from kbert.train.distribution import Devices
    from kbert.train.remote_sync import RemoteRunDir
    from kbert.train.trainer import Trainer
    from kbert.train.workers import Workers


def pretrain(
    config: "PretrainConfig",
    output_dir: str | os.PathLike[str],
    dry_run: bool = False,
    callbacks: "Sequence[Callback]" = (),
) -> dict[str, Any]:
    """Pretrains a BERT, or resumes a run that was stopped.

    With a `teacher`, the model also learns the teacher's predictions of the masked words ("general
    distillation"). Writes `OUTPUT_DIR/pretrain/` with `checkpoint`, `best` (the lowest held-out MLM
    loss; only with `eval_input`), `final`, `metrics.jsonl`, `curves.png`, `tensorboard` and
    `run.flags`, and `OUTPUT_DIR/data/` with the vocabulary and the corpora prepared from text. A
    resumed run computes the same results as an uninterrupted one, bit for bit on the same devices;
    on GPUs this requires `deterministic`.

    Args:
        config: settings of the run.
        output_dir: the run's folder.
        dry_run: take a few steps, print the estimated cost of the run, and write only `data`.
        callbacks: called after the default callbacks.

    Returns:
        dict of the last logged metrics, and of the last evaluation metrics, whose names begin with
        `eval_`; empty after a dry run.

    Raises:
        SystemExit: Ctrl-C or SIGTERM stopped the run after it saved a checkpoint.
        UserError: the inputs cannot be used; flags contradict the checkpoint, the devices or each
            other; the folder is in use; the loss is not finite (the message names the step); or
            files cannot be written.
    """
    check_inputs(config)
    workload = Pretraining(config)
    if config.teacher:
        from kbert.train.distillation import Distillation

        workload = Distillation(workload)
    callbacks = [*callbacks, MaskedWords()]
    return start_run(workload, output_dir, callbacks, dry_run)


class Pretraining(Workload):
    """The workload of pretraining: MLM and NSP, or MLM alone, on a corpus.

    Attributes:
        corpus: training text.
        held_out_corpus: held-out text, or None.
        held_out: evaluates the model on the held-out text; None without such text.
    """

    config: "PretrainConfig"
    subfolder: str
    program: str
    teacher_class: type[BertForMaskedLM]
    bert_config: "BertConfig"
    tokenizer: "BertTokenizer"
    time_budget: str | None
    train_steps: int
    eval_every_steps: int
    schedule: Schedule
    objective: MaskedLMObjective
    data: PretrainingExamples
    model: BertForPreTraining | BertForMaskedLM
    corpus: "Corpus"
    held_out_corpus: "Corpus | None"
    held_out: HeldOutEvaluation | None

    subfolder, program = "pretrain", "kbert.pretrain"
    fixed: tuple[str, ...] = (
        *("max_seq_length", "max_predictions_per_seq", "mask_rate", "whole_word_mask"),
        *("packing", "next_sentence", "short_seq_prob", "global_batch_size", "optimizer"),
        *("bias_correction", "dropout", "seed"),
    )
    teacher_class = BertForMaskedLM
    # The teacher does not affect the NSP loss.
    distilled_sums: tuple[str, ...] = ("mlm_loss", "mlm_count")

    def load(
        self,
        state: Mapping[str, Any] | None,
        saved: pathlib.Path | None,
        run_dir: "RemoteRunDir",
        workers: "Workers",
        check: "Callable[[BertConfig, BertTokenizer], None]" = lambda bert_config, tokenizer: None,
    ) -> None:
        self.time_budget = state.get("time_budget") if state else self.config.time_budget
        self._set_steps(with_saved_steps(self.config, state, saved) if state else self.config)
        config = self.config
        if state and ("teacher" in state["data"]) != bool(config.teacher):
            raise UserError(
                f"{saved} was written with{'out' if config.teacher else ''} a teacher. Resume the "
                f"run in the same way, or start a new run: --init_from={saved} "
                f"--output_dir=ANOTHER."
            )
        with workers.chief_first():
            run_dir.fetch("data")
            self.bert_config, self.tokenizer, self.corpus, self.held_out_corpus = (
                load_or_create_inputs(
                    config,
                    run_dir.folder / "data",
                    saved,
                    self.layers,
                    check=check,
                    report=lambda line: log(run_dir.display_path(line)),
                    may_write=workers.is_chief,
                )
            )
            if workers.is_chief:
                run_dir.send_all("data")
        self.objective = MaskedLMObjective()
        if config.next_sentence:
            self.objective = PretrainingObjective(config.global_batch_size)
        self.data = PretrainingExamples(
            self.corpus,
            config.max_seq_length,
            config.max_predictions_per_seq,
            config.mask_rate,
            config.whole_word_mask,
            config.short_seq_prob,
            config.seed,
            config.next_sentence,
            config.packing,
        )

    def choose_steps(self, trainer: "Trainer") -> None:
        if self.config.time_budget is None:
            return
        self._set_steps(with_timed_steps(self.config, trainer))
        optimizer = trainer.train_step.optimizer
        optimizer.learning_rate = self.schedule
        trainer.make_train_step(optimizer)

    def _set_steps(self, config):
        """Sets `config`, `schedule` and, unless steps must be timed first, the numbers of steps."""
        self.config = config
        if config.time_budget:
            self.schedule = WarmupPolynomialDecay(0.0, 1, 0)  # a learning rate of 0 while timing
            return
        self.train_steps, self.eval_every_steps = config.train_steps, config.eval_every_steps
        self.schedule = make_schedule(config)

    def make_model(self, bert_config: "BertConfig") -> BertForPreTraining | BertForMaskedLM:
        config = self.config
        model_class = BertForPreTraining if config.next_sentence else BertForMaskedLM
        self.model = model_class(bert_config, dtype=config.precision)
        if config.embedding_initializer_range and not config.init_from:
            table = self.model.bert.embeddings.word_embeddings.embeddings
            scale = config.embedding_initializer_range / bert_config.initializer_range
            table.assign(table * scale)
        self.held_out = None
        if self.held_out_corpus is not None:
            sizes = config.max_seq_length, config.eval_examples
            self.held_out = HeldOutEvaluation(
                self.model, self.held_out_corpus, *sizes, config.next_sentence
            )
        return self.model

    def initialize_from(self, folder: str, restore: Callable[[str], None]) -> str:
        before, weights = None, ModelFolder(folder, self.tokenizer.vocab)
        extended = self.tokenizer.vocab_size > weights.tokenizer.vocab_size
        if is_checkpoint(folder) and not self.layers and not extended:
            before = _trained_with(verified_state(folder)["settings"])
        if before == _trained_with(dataclasses.asdict(self.config)):
            restore(folder)
            return f"the weights and the optimizer of {folder}"
        self.model.load_pretrained(weights, layers=self.layers)
        why = f" (it was trained with {before})" if before else ""
        return f"the weights of {folder}, with a fresh optimizer{why}"

    def identity(self) -> dict[str, Any]:
        held_out = self.held_out_corpus
        held_out = held_out and [corpus_fingerprint(held_out), self.config.eval_examples]
        return {"corpus": corpus_fingerprint(self.corpus), "held_out": held_out}

    def describe(self, devices: "Devices") -> Iterator[str]:
        yield report.model_line(self.bert_config, self.model.count_params(), self.config.precision)
        yield devices.describe(self.config)
        corpus, count = self.corpus, self.data.count
        yield (
            f"text: {corpus.documents:,} documents, {corpus.tokens:,} tokens; an epoch has "
            f"{count:,} examples ({count / self.config.global_batch_size:,.0f} steps) and shows a "
            f"token {self.data.views_per_token():.2f} times"
        )
        if not self.config.next_sentence:
            yield f"rows: {self.data.padding():.1%} of the positions are padding"
        if self.held_out is None:
            yield "no --eval_input: no held-out loss, and no best weights are kept"

    def describe_cost(self, trainer: "Trainer") -> Iterator[str]:
        config, teacher, examples = self.config, trainer.workload.teacher, self.data
        B, L, M = config.global_batch_size, config.max_seq_length, examples.max_predictions
        seconds, steps = trainer.throughput.step_seconds, self.train_steps
        flops = step_flops(self.bert_config, B, L, M, config.remat, config.next_sentence)
        flops += B * sum(forward_flops(teacher.config, L, M, False)) if teacher else 0
        epoch, epochs = examples.count / B, steps * B / examples.count
        views = examples.views_per_token()
        yield f"parameters: {trainer.model.count_params():,}"
        yield (
            f"compute: {flops:.2e} floating-point operations per step, {flops * steps:.2e} in "
            f"total; {flops / seconds / trainer.devices.replicas / 1e12:.3f} TFLOP/s per device"
        )
        yield memory_line(trainer, B, L, M)
        yield (
            f"data: {steps:,} steps of {B * L:,} tokens with padding, {steps * B * L:,} in total; "
            f"{epoch:,.1f} steps per epoch, {epochs:,.2f} epochs; a token is seen "
            f"{epochs * views:,.1f} times"
        )
        yield (
            f"time: {seconds:.3f} s per step over three steps, {B * L / seconds:,.0f} tokens/s "
            f"with padding; {steps:,} steps take {report.time_text(steps * seconds)} without "
            f"evaluations"
        )

    def evaluation(self) -> tuple[dict[str, float], float] | None:
        if self.held_out is None:
            return None
        metrics = self.held_out.metrics()
        return metrics, -metrics["eval_mlm_loss"]

    def train_text(self, step: int, metrics: Mapping[str, float]) -> str:
        return (
            f"loss {metrics['loss']:.3f} | "
            f"mlm {metrics['mlm_loss']:.3f} acc {metrics['mlm_accuracy']:.3f}"
            f"{_next_sentence_text(metrics)}"
        )

    def evaluation_text(self, step: int, metrics: Mapping[str, float]) -> str:
        return (
            f"held out at step {step:,} | mlm {metrics['eval_mlm_loss']:.3f} "
            f"(unigram entropy {metrics['eval_unigram_entropy']:.3f}) "
            f"acc {metrics['eval_mlm_accuracy']:.3f} "
            f"perplexity {metrics['eval_mlm_perplexity']:.1f}"
            f"{_next_sentence_text(metrics, 'eval_')}"
        )

    def check_teacher(self, teacher_config: "BertConfig", bert_config: "BertConfig") -> None:
        student_size, teacher_size = bert_config.vocab_size, teacher_config.vocab_size
        if student_size != teacher_size:
            raise UserError(
                f"the student's vocab_size must equal its teacher's, {teacher_size}, to compare "
                f"their probabilities; got {student_size}. Set it in the file of --bert_config."
            )

    def soft_loss(
        self,
        outputs: Mapping[str, Any],
        teacher_outputs: Mapping[str, Any],
        features: Mapping[str, tf.Tensor],
    ) -> tf.Tensor:
        logits = outputs[self.objective.mlm_logits], teacher_outputs["logits"]
        losses = soft_losses(*logits, self.config.temperature)
        return tf.reduce_sum(losses * features["masked_weights"])


def _trained_with(settings):
    """Returns, as text, the settings that determine which variables the optimizer has."""
    joined = "and" if settings.get("next_sentence", True) else "without"
    return f"{settings['optimizer']} {joined} next sentence prediction"


def _next_sentence_text(metrics, prefix=""):
    if f"{prefix}nsp_loss" not in metrics:
        return ""
    loss, accuracy = metrics[f"{prefix}nsp_loss"], metrics[f"{prefix}nsp_accuracy"]
    return f" | nsp {loss:.3f} acc {accuracy:.3f}"
