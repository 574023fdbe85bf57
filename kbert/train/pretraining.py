"""Pretraining: MLM and NSP on a corpus."""

import tensorflow as tf

from kbert.corpus.corpus import corpus_fingerprint
from kbert.data.pretraining_batches import PretrainingExamples
from kbert.errors import UserError
from kbert.model.models import BertForMaskedLM, BertForPreTraining
from kbert.tasks.task import soft_losses
from kbert.train import distillation_objective, report
from kbert.train.checkpoint import is_checkpoint, verified_state
from kbert.train.cost_estimate import estimate_text
from kbert.train.evaluation import HeldOut
from kbert.train.inputs import check_inputs, resolve_inputs
from kbert.train.loop import Run, start_run
from kbert.train.losses import PretrainingObjective
from kbert.train.optimizer import make_optimizer, make_schedule
from kbert.utils.logging import log

DRY_RUN_STEPS = 3


def pretrain(config, output_dir, dry_run=False):
    """Pretrains a BERT, or goes on with a run that was stopped.

    With a `teacher`, what it says of the masked words is learnt besides ("general distillation").
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
    kind = DistillPretraining if config.teacher else Pretraining
    act = kind.rehearse if dry_run else kind.run
    return start_run(kind, config, output_dir, act, check_inputs)


class Pretraining(Run):
    """A run of `pretrain`. config: PretrainConfig."""

    part, program = "pretrain", "kbert.pretrain"
    teacher = None
    fixed = (
        *("max_seq_length", "max_predictions_per_seq", "mask_rate", "whole_word_mask"),
        *("short_seq_prob", "global_batch_size", "optimizer", "seed"),
        *("sparsity", "sparsity_begin", "sparsity_end"),
        *distillation_objective.FIXED,
    )

    def find(self, state):
        config = self.config
        saved = self.checkpoints.path(state["step"]) if state else None
        if state and ("teacher" in state["data"]) != bool(config.teacher):
            raise UserError(
                f"{saved} was written with{'out' if config.teacher else ''} a teacher. Go on so, "
                f"or start another run: --init_from={saved} --output_dir=ANOTHER."
            )
        workers = self.devices.workers
        with workers.chief_first():
            self.run_dir.fetch("data")
            self.inputs = resolve_inputs(
                config,
                self.output_dir / "data",
                saved,
                check=self.check_model,
                report=lambda line: log(self.run_dir.shown(line)),
                may_make=workers.is_chief,
            )
            if workers.is_chief:
                self.run_dir.send_all("data")
        self.bert_config, self.tokenizer = self.inputs.bert_config, self.inputs.tokenizer
        self.train_steps, self.eval_every_steps = config.train_steps, config.eval_every_steps
        self.objective = PretrainingObjective(config.global_batch_size)
        self.schedule = make_schedule(config)
        self.examples = PretrainingExamples(
            self.inputs.corpus,
            config.max_seq_length,
            config.max_predictions_per_seq,
            config.mask_rate,
            config.whole_word_mask,
            config.short_seq_prob,
            config.seed,
        )

    def dataset(self, batch_size, first, count, input_context):
        return self.examples.dataset(batch_size, first, count, input_context)

    def make_model(self):
        model = BertForPreTraining(self.bert_config, dtype=self.config.precision)
        self.held_out = None
        if self.inputs.eval_corpus is not None:
            self.held_out = HeldOut(
                model,
                self.inputs.eval_corpus,
                self.config.max_seq_length,
                self.config.eval_examples,
            )
        return model

    def make_optimizer(self):
        return make_optimizer(self.config, self.schedule)

    def initialize_from(self, folder):
        saved_optimizer = (
            verified_state(folder)["settings"]["optimizer"] if is_checkpoint(folder) else None
        )
        if saved_optimizer == self.config.optimizer:
            self.restore(folder)
            return f"the weights and the optimizer of {folder}"
        self.model.load_pretrained(folder)
        why = f" (it was trained with {saved_optimizer})" if saved_optimizer else ""
        return f"the weights of {folder}, with a fresh optimizer{why}"

    def identity(self):
        held_out = self.inputs.eval_corpus
        held_out = held_out and [corpus_fingerprint(held_out), self.config.eval_examples]
        return {"corpus": corpus_fingerprint(self.inputs.corpus), "held_out": held_out}

    def describe(self):
        log(report.model_line(self.bert_config, self.model.count_params(), self.config.precision))
        log(self.devices.describe(self.config))
        log(report.text_line(self.inputs.corpus, self.examples.windows, self.config))
        if self.held_out is None:
            log("no --eval_input: no held-out loss, and no best weights are kept")

    def evaluation(self):
        if self.held_out is None:
            return None
        metrics = self.held_out.metrics()
        return metrics, -metrics["eval_mlm_loss"]

    def train_line(self, metrics, eta_seconds):
        return report.train_line(self.step, self.train_steps, metrics, eta_seconds)

    def evaluation_line(self, metrics, better):
        return report.held_out_line(self.step, metrics, better)

    def rehearse(self):
        """Takes a few steps to say what the run would take; writes nothing."""
        batches = self._batches(1 + DRY_RUN_STEPS)
        for count in (1, DRY_RUN_STEPS):  # the first one compiles
            self._take_steps(batches, count)
        log(
            estimate_text(
                self.config,
                self.bert_config,
                self.model.count_params(),
                self.devices,
                self.examples,
                self.throughput.step_seconds,
                self.teacher,
            )
        )
        return {}


class DistillPretraining(distillation_objective.DistillMixin, Pretraining):
    """A run of `pretrain` with a teacher; NSP is learnt from its labels alone."""

    teacher_class = BertForMaskedLM

    def check_model(self, bert_config, tokenizer):
        super().check_model(bert_config, tokenizer)
        student_size, teacher_size = bert_config.vocab_size, self.teacher.config.vocab_size
        if student_size != teacher_size:
            raise UserError(
                f"the student's vocab_size must be that of its teacher, {teacher_size}, whose "
                f"probabilities it learns; got {student_size}. Write it into --bert_config's file."
            )

    def make_distillation_objective(self):
        def soft(outputs, teacher_outputs, features):
            temperature = self.config.temperature
            losses = soft_losses(outputs["mlm_logits"], teacher_outputs["logits"], temperature)
            return tf.reduce_sum(losses * features["masked_weights"])

        return distillation_objective.DistillationObjective(
            self.objective, self.config, self.teacher, soft, loss="mlm_loss", count="mlm_count"
        )

    def initialize_from(self, folder):
        layers = distillation_objective.start_layers(self.config)
        if layers is None:
            return super().initialize_from(folder)
        self.model.load_pretrained(folder, layers=layers)
        return distillation_objective.origin(layers, folder)
