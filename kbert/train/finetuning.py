"""Fine-tuning: trains a pretrained BERT with a task head on labeled examples."""

import dataclasses
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.config import BertConfig
from kbert.data.bucketed_batches import BucketedBatches
from kbert.errors import UserError
from kbert.inference.batch_runner import BatchRunner
from kbert.model.folder import ModelFolder
from kbert.model.weights import part_of
from kbert.settings import ColumnConfig
from kbert.tasks.labels import label_conflicts
from kbert.tasks.registry import get_task, make_task, with_task_defaults, write_task_settings
from kbert.train import report
from kbert.train.cost_estimate import memory_line
from kbert.train.cross_validation import cross_validate
from kbert.train.data_report import data_lines, length_lines, token_lengths, truncation_notes
from kbert.train.finetuning_data import class_weights, fingerprint, read_splits
from kbert.train.losses import ComparingObjective, TaskObjective
from kbert.train.predictions import write_predictions
from kbert.train.schedule import WarmupPolynomialDecay
from kbert.train.start import start_run
from kbert.train.workload import Workload
from kbert.utils import atomic
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.model.pretrained import PretrainedModel
    from kbert.settings import FinetuneConfig
    from kbert.tasks.encoding import Encoded
    from kbert.tasks.task import Task
    from kbert.tokenizer import BertTokenizer
    from kbert.train.callbacks import Callback
    from kbert.train.distribution import Devices
    from kbert.train.remote_sync import RemoteRunDir
    from kbert.train.trainer import Trainer
    from kbert.train.workers import Workers


def finetune(
    config: "FinetuneConfig",
    output_dir: str | os.PathLike[str],
    dry_run: bool = False,
    callbacks: "Sequence[Callback]" = (),
) -> dict[str, Any]:
    """Fine-tunes a BERT for a task, or resumes a run that was stopped.

    Writes `OUTPUT_DIR/finetuning/` with `checkpoint`, `final`, `metrics.jsonl`, `curves.png`,
    `tensorboard`, `run.flags` and `results.json`. With evaluation examples, also writes `best`, the
    weights with the best `best_metric`. For the evaluation and the test examples, writes the
    predictions and, for some tasks, a report and a confusion matrix. A resumed run computes the
    same results as an uninterrupted one, bit for bit on the same devices; on GPUs this requires
    `deterministic`.

    Args:
        config: settings of the run.
        output_dir: the run's folder.
        dry_run: describe the examples, take a few steps, print the estimated cost of the run, and
            write nothing.
        callbacks: called after the default callbacks.

    Returns:
        dict of "eval" and "test", if there are such examples -> dict of the scores. They are the
        scores of the best weights or, without evaluation examples, of the last weights. Empty after
        a dry run. With `folds`: the result of `kbert.train.cross_validation.cross_validate`.

    Raises:
        SystemExit: Ctrl-C or SIGTERM stopped the run after it saved a checkpoint.
        UserError: examples (the message names file and line), labels or weights cannot be used;
            flags contradict the checkpoint, the devices or each other; the folder is in use; the
            loss is not finite; or files cannot be written.
    """

    def run(config, folder):
        return start_run(Finetuning(config), folder, callbacks, dry_run)

    return cross_validate(with_task_defaults(config), output_dir, run)


class Finetuning(Workload):
    """The workload of fine-tuning: a task, its model and labeled examples.

    Args:
        config: settings of the run.
        part, program: see `Workload`.

    Attributes:
        task: the task.
        metric: name of the score that selects the best weights.
        examples: dict of "train", "eval" and "test" -> list of examples.
        encoded: dict of the same keys -> encoded examples.
        class_weights: (C,) floats, the loss weights of the classes, or None.
        skipped_task_heads: task heads of `init_from` that are not loaded.
        batch_runner: computes the model's outputs for evaluations and predictions.
    """

    config: "FinetuneConfig"
    subfolder: str
    program: str
    patience: int | None
    bert_config: BertConfig
    tokenizer: "BertTokenizer"
    train_steps: int
    eval_every_steps: int
    schedule: WarmupPolynomialDecay
    objective: TaskObjective
    data: BucketedBatches
    model: "PretrainedModel"
    task: "Task"
    metric: str
    examples: dict[str, list[Any]]
    encoded: "dict[str, Encoded]"
    class_weights: np.ndarray | None
    skipped_task_heads: tuple[str, ...]
    batch_runner: BatchRunner

    fixed: tuple[str, ...] = (
        *("task", "max_seq_length", "batch_size", "optimizer", "seed", "class_weights"),
        *("freeze_embeddings", "freeze_layers", "lora_rank", "lora_alpha", "layer_decay"),
        *("bias_correction", "label_names", "eval_fraction", "folds", "fold"),
        *("doc_stride", "max_query_length"),
        *("loss", "similarity_scale", "symmetric", "margin", "matryoshka_dims", "pooling"),
    )
    scoring_settings: tuple[str, ...] = (
        *("eval_file", "test_file", "unknown_labels", "max_answer_length", "null_threshold"),
        *(field.name for field in dataclasses.fields(ColumnConfig)),
    )
    distilled_sums: tuple[str, ...] = ("loss", "count")

    def __init__(
        self,
        config: "FinetuneConfig",
        subfolder: str = "finetuning",
        program: str = "kbert.finetune",
    ) -> None:
        super().__init__(config)
        self.subfolder, self.program = subfolder, program
        own = get_task(config.task).task_specific_fields()
        self.fixed = (*self.fixed, *(name for name in own if hasattr(config, name)))

    @property
    def teacher_class(self) -> "type[PretrainedModel]":
        return get_task(self.config.task).model_class

    def load(
        self,
        state: Mapping[str, Any] | None,
        saved: pathlib.Path | None,
        run_dir: "RemoteRunDir",
        workers: "Workers",
        check: "Callable[[BertConfig, BertTokenizer], None]" = lambda bert_config, tokenizer: None,
    ) -> None:
        config = self.config
        folder = ModelFolder.of(saved or config.init_from)
        self.tokenizer = folder.tokenizer
        saved_names = tuple(state["bert_config"]["label_names"] or ()) if state else None
        names, examples = read_splits(config, saved_names, self.teacher_labels)
        allow_no_answer = any(getattr(e, "is_impossible", False) for e in examples["train"])
        self.task = make_task(config, self.tokenizer, names, allow_no_answer)
        self.bert_config = self._bert_config(folder, None if saved else self.layers, examples)
        check(self.bert_config, self.tokenizer)
        self.class_weights = class_weights(config.class_weights, self.task, examples["train"])
        self.encoded = {
            name: self.task.encode(rows, self.class_weights if name == "train" else None)
            for name, rows in examples.items()
        }
        self.examples = examples
        self.metric = config.best_metric or self.task.metric
        self.patience = config.early_stopping_patience
        items = self.encoded["train"].items
        self.data = BucketedBatches(
            items, config.batch_size, config.max_seq_length, self.tokenizer.pad_id, config.seed
        )
        epoch = self.data.steps_per_epoch
        self.train_steps = max(1, round(config.epochs * epoch))
        self.eval_every_steps = config.eval_every_steps or epoch
        self.schedule = WarmupPolynomialDecay(
            config.learning_rate, self.train_steps, int(config.warmup_ratio * self.train_steps)
        )
        kind = ComparingObjective if self.task.compares_examples else TaskObjective
        self.objective = kind(self.task)

    def _bert_config(self, folder, layers, examples):
        task_heads = self.task.model_class.task_heads
        with folder.open_weights(parts=task_heads, layers=layers) as (base_config, weights):
            there = {part_of(name) for name in weights}
        fields = base_config.to_dict() | self.task.config_fields()
        fields |= self.task.adapt(base_config, examples)
        # The task head of the folder is loaded only if it has the same labels.
        self.skipped_task_heads = (
            tuple(there & set(task_heads)) if label_conflicts(base_config, self.task) else ()
        )
        if self.config.classifier_dropout is not None:
            fields["classifier_dropout"] = self.config.classifier_dropout
        if self.config.max_seq_length > base_config.max_position_embeddings:
            raise UserError(
                f"max_seq_length must be at most {base_config.max_position_embeddings}, the "
                f"max_position_embeddings of {folder}; got {self.config.max_seq_length}. Longer "
                f"texts are truncated, or split into windows with --task=qa."
            )
        return BertConfig(**fields)

    def make_model(self, bert_config: BertConfig) -> "PretrainedModel":
        config = self.config
        self.model = model = self.task.model_class(bert_config, dtype=config.precision)
        if config.lora_rank:
            model.add_lora(config.lora_rank, config.lora_alpha)
        elif config.freeze_embeddings or config.freeze_layers:
            model.freeze_encoder(config.freeze_layers)
        self.batch_runner = BatchRunner(
            functools.partial(self.task.forward, model),
            *(self.tokenizer.pad_id, config.max_seq_length, config.batch_size),
        )
        return model

    def initialize_from(self, folder: str, restore: Callable[[str], None]) -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            self.model.load_pretrained(
                folder, skip_parts=self.skipped_task_heads, layers=self.layers
            )
        for warning in caught:
            log(f"note: {warning.message}")
        if self.skipped_task_heads:
            log(f"note: the task head of {folder} has other labels; it is not used")
        return f"the weights of {folder}"

    def check_metric(self) -> None:
        if self.config.best_metric and "eval" in self.examples:
            scores = self._score("eval", limit=8)[0]
            if self.metric not in scores:  # a score may need examples that are not among the 8
                scores = self._score("eval")[0]
            if not isinstance(scores.get(self.metric), float):
                names = ", ".join(name for name, value in scores.items() if type(value) is float)
                raise UserError(
                    f"best_metric must be one of {names}; got {self.config.best_metric!r}."
                )

    def identity(self) -> dict[str, Any]:
        held_out = None
        if "eval" in self.encoded:
            held_out = [fingerprint(self.encoded["eval"].items), self.metric]
        return {"corpus": fingerprint(self.encoded["train"].items), "held_out": held_out}

    def describe(self, devices: "Devices") -> Iterator[str]:
        config = self.config
        parameters = self.model.count_params()
        yield report.model_line(self.bert_config, parameters, config.precision)
        trained = sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)
        if trained < parameters:
            yield f"trainable: {trained:,} of {parameters:,} parameters"
        yield devices.describe(config)
        counts = ", ".join(f"{len(rows):,} {name}" for name, rows in self.examples.items())
        yield (
            f"task: {config.task}, {counts} examples; an epoch has "
            f"{self.data.steps_per_epoch:,} steps"
        )
        yield from data_lines(self.task, self.examples)
        if not self.task.splits_into_windows:
            yield from truncation_notes(self._lengths, config.max_seq_length)
        if config.fold:
            yield f"test: part {config.fold} of {config.folds} of --train_file, not trained on"
        if config.eval_fraction:
            count = len(self.examples["eval"])
            yield f"eval: {count:,} examples of --train_file, not trained on"
        if "eval" not in self.examples:
            yield "no --eval_file or --eval_fraction: the weights of the last step are used"

    @functools.cached_property
    def _lengths(self):
        """Dict of "train", "eval" and "test" -> lengths of the examples; see `token_lengths`."""
        return {
            name: token_lengths(self.task, rows, self.encoded[name])
            for name, rows in self.examples.items()
        }

    def longest_batches(self) -> BucketedBatches:
        config, items = self.config, self.encoded["train"].items
        longest = sorted(items, key=lambda item: -item.length)[: config.batch_size]
        fixed = config.batch_size, config.max_seq_length, self.tokenizer.pad_id, config.seed
        return BucketedBatches(longest, *fixed)

    def describe_cost(self, trainer: "Trainer") -> Iterator[str]:
        yield from length_lines(self._lengths, self.config.max_seq_length)
        example = self.longest_batches().batch(0)["input_ids"]
        length, rows = example.shape[-1], example.size // example.shape[-1]
        yield memory_line(trainer, rows, length, 0)
        seconds = trainer.throughput.step_seconds
        mean = self.data.mean_length()
        total = self.train_steps * seconds * mean / length
        yield (
            f"time: {seconds:.3f} s per step over three steps of the longest examples, padded to "
            f"{length} tokens; batches are padded to {mean:.0f} on average, so "
            f"{self.train_steps:,} steps take about {report.time_text(total)} without evaluations"
        )

    def evaluation(self) -> tuple[dict[str, float], float] | None:
        if "eval" not in self.examples:
            return None
        scores = self._score("eval")[0]
        value = scores[self.metric]
        metrics = {f"eval_{name}": v for name, v in scores.items() if isinstance(v, (int, float))}
        return metrics, -value if self.metric in self.task.lower_is_better else value

    def train_text(self, step: int, metrics: Mapping[str, float]) -> str:
        return f"epoch {step / self.data.steps_per_epoch:.2f} | loss {metrics['loss']:.4f}"

    def evaluation_text(self, step: int, metrics: Mapping[str, float]) -> str:
        first = f"eval_{self.metric}"
        names = [first, *(name for name in metrics if name != first)][:4]
        scores = " | ".join(f"{name[5:]} {metrics[name]:.4f}" for name in names)
        return f"eval at step {step:,} | {scores}"

    def finish(self, results: dict[str, Any], run_dir: "RemoteRunDir") -> dict[str, Any]:
        folder = run_dir.folder / self.subfolder
        path = folder / "results.json"
        if "eval" in self.examples and (folder / "best").exists():
            self.model.load_pretrained(folder / "best")
        results, predictions = {}, {}
        for name in ("eval", "test"):
            if name in self.examples:
                results[name], predictions[name] = self._score(name)
        atomic.write_json(path, results)
        for name, rows in predictions.items():
            write_predictions(folder, name, self.task, self.examples[name], rows)
        if results:
            log(f"scores: {run_dir.display_path(path)}; reports and predictions beside it")
        return results

    def _score(self, name, limit=None):
        """Returns the scores of the current weights on "eval" or "test", and the predictions."""
        examples, encoded = self.examples[name], self.encoded[name]
        if limit is not None:
            examples = examples[:limit]
            encoded = self.task.encode(examples)
        outputs = self.batch_runner(encoded.items)
        predictions = self.task.predictions(examples, encoded, outputs)
        fitted = self.config.null_threshold is None and getattr(self.task, "allow_no_answer", False)
        if fitted and name == "eval":
            self.task.find_threshold(examples, predictions)
            predictions = self.task.predictions(examples, encoded, outputs)
        return self.task.scores(examples, predictions), predictions

    @property
    def final_format(self) -> str:
        # Only kbert's own format stores the small matrices of a model with removed heads.
        return "kbert" if self.bert_config.attention_heads_per_layer else self.task.final_format

    def write_pretrained(
        self,
        folder: str | os.PathLike[str],
        weights: dict[str, np.ndarray],
        format: str = "kbert",
    ) -> None:
        super().write_pretrained(folder, weights, format)
        takes_pairs = getattr(self.examples["train"][0], "text_pair", None) is not None
        write_task_settings(folder, self.task, takes_pairs)

    def check_teacher(self, teacher_config: BertConfig, bert_config: BertConfig) -> None:
        for name, (teacher_value, student_value) in label_conflicts(
            teacher_config, self.task
        ).items():
            raise UserError(
                f"the teacher, {self.config.teacher}, has {name} {teacher_value}; the student "
                f"would have {student_value}. Remove --label_names, or use a teacher that was "
                f"trained for this task."
            )

    def soft_loss(
        self,
        outputs: Mapping[str, Any],
        teacher_outputs: Mapping[str, Any],
        features: Mapping[str, tf.Tensor],
    ) -> tf.Tensor:
        losses = self.task.soft_losses(outputs, teacher_outputs, self.config.temperature)
        return tf.reduce_sum(losses * features["label_weights"])
