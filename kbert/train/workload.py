"""Workloads: what a run trains (model, data, objective), separate from the training loop."""

import abc
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kbert.model.weights import Tensors, write_weights
from kbert.train.distribution import fast_precision

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from kbert.compression.distillation_objective import Objective
    from kbert.compression.teacher import Teacher
    from kbert.config import BertConfig
    from kbert.data.bucketed_batches import BucketedBatches
    from kbert.data.pretraining_batches import PretrainingExamples
    from kbert.model.pretrained import PretrainedModel
    from kbert.settings import FinetuneConfig, PretrainConfig
    from kbert.tokenizer import BertTokenizer
    from kbert.train.distribution import Devices
    from kbert.train.remote_sync import RemoteRunDir
    from kbert.train.schedule import Schedule
    from kbert.train.trainer import Trainer
    from kbert.train.workers import Workers


class Workload(abc.ABC):
    """Model, data and objective of a run; `kbert.train.trainer.Trainer` trains it.

    A subclass implements the abstract methods, and overrides the other methods that it needs.

    Attributes:
        config: settings of the run.
        subfolder: name of the run's subfolder, such as "pretrain".
        program: module that resumes the run, such as "kbert.pretrain".
        final_format: format of the folders `best` and `final`.
        fixed: names of the settings that affect results and must not change when a run resumes.
        scoring_settings: names of the settings that affect the scores of a complete run, which is
            only scored again when it is started again.
        patience: number of evaluations without improvement before early stopping, or None.
        layers: numbers of the encoder blocks of `init_from` to use, from 1; None for all.
        time_budget: the `time_budget` that the run was started with, or None.
        teacher: the teacher of a distillation run, or None.
        teacher_labels: names of the teacher's labels, or None.
        teacher_class: model class of the teacher.
        distilled_sums: names of two of the objective's sums: the loss that the teacher's soft loss
            partly replaces, and its count.
        bert_config, tokenizer, train_steps, eval_every_steps, schedule, objective: set by `load`.
        data: set by `load`; its `dataset(batch_size, first, count, input_context)` returns a
            tf.data.Dataset of `count` batches for the replicas of a worker, starting at batch
            `first`.
        model: set by `make_model`.
    """

    config: "PretrainConfig | FinetuneConfig"
    subfolder: str
    program: str
    final_format: str = "kbert"
    fixed: tuple[str, ...] = ()
    scoring_settings: tuple[str, ...] = ()
    patience: int | None = None
    time_budget: str | None = None
    layers: tuple[int, ...] | None = None
    teacher: "Teacher | None" = None
    teacher_labels: tuple[str, ...] | None = None
    teacher_class: "type[PretrainedModel] | None" = None
    distilled_sums: tuple[str, ...] = ()
    bert_config: "BertConfig"
    tokenizer: "BertTokenizer"
    train_steps: int
    eval_every_steps: int
    schedule: "Schedule"
    objective: "Objective"
    data: "PretrainingExamples | BucketedBatches"
    model: "PretrainedModel"

    def __init__(self, config: "PretrainConfig | FinetuneConfig") -> None:
        self.config = config

    def choose_precision(self, kind: str) -> None:
        """Replaces the precision "auto" by the faster one on devices of a kind."""
        if self.config.precision == "auto":
            self.config = dataclasses.replace(self.config, precision=fast_precision(kind))

    @abc.abstractmethod
    def load(
        self,
        state: Mapping[str, Any] | None,
        saved: pathlib.Path | None,
        run_dir: "RemoteRunDir",
        workers: "Workers",
        check: "Callable[[BertConfig, BertTokenizer], None]" = lambda bert_config, tokenizer: None,
    ) -> None:
        """Loads or creates the inputs of the run.

        Args:
            state: state of the checkpoint that the run resumes from, or None.
            saved: folder of that checkpoint, or None.
            check: called with the BertConfig and the tokenizer before anything slow; it may raise
                UserError.
        """

    @abc.abstractmethod
    def make_model(self, bert_config: "BertConfig") -> "PretrainedModel":
        """Creates the model with random weights, and freezes the weights that are not trained."""

    @abc.abstractmethod
    def initialize_from(self, folder: str, restore: Callable[[str], None]) -> str:
        """Loads the weights of `init_from`, a folder; returns a description of their origin.

        `restore` loads weights and optimizer state from a checkpoint's folder.
        """

    def choose_steps(self, trainer: "Trainer") -> None:  # noqa: B027 - optional
        """Sets `train_steps` and the settings derived from it, if a time budget determines them.

        The trainer's model has its initial weights.
        """

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns a JSON-serializable dict that identifies the data.

        Its keys are "corpus", for the training data, and "held_out", for the evaluation data; the
        value of the latter is None without such data.
        """

    @abc.abstractmethod
    def describe(self, devices: "Devices") -> Iterable[str]:
        """Returns log lines that describe the model, the devices and the data."""

    def longest_batches(self) -> "PretrainingExamples | BucketedBatches":
        """Returns data like `data`, in which every batch is as expensive as the largest one."""
        return self.data

    @abc.abstractmethod
    def describe_cost(self, trainer: "Trainer") -> Iterable[str]:
        """Returns log lines with the run's estimated cost, after steps on `longest_batches`."""

    def check_metric(self) -> None:  # noqa: B027 - optional
        """Raises UserError if the metric in the settings cannot select the best weights."""

    def evaluation(self) -> tuple[dict[str, float], float] | None:
        """Returns metrics on held-out data and the value to maximize; None if there is none."""
        return None

    @abc.abstractmethod
    def train_text(self, step: int, metrics: Mapping[str, float]) -> str:
        """Formats the metrics of the steps since the last log for the progress line."""

    @abc.abstractmethod
    def evaluation_text(self, step: int, metrics: Mapping[str, float]) -> str:
        """Returns the log line of an evaluation."""

    @abc.abstractmethod
    def check_teacher(self, teacher_config: "BertConfig", bert_config: "BertConfig") -> None:
        """Raises UserError if the teacher is incompatible with the student."""

    @abc.abstractmethod
    def soft_loss(
        self,
        outputs: Mapping[str, Any],
        teacher_outputs: Mapping[str, Any],
        features: "Mapping[str, tf.Tensor]",
    ) -> "tf.Tensor":
        """Returns the soft loss between student and teacher, summed over all labels, a scalar."""

    def finish(self, results: dict[str, Any], run_dir: "RemoteRunDir") -> dict[str, Any]:
        """Finishes the run after its last step; returns its results.

        `results` are the last logged metrics and the last evaluation metrics.
        """
        return results

    def write_pretrained(
        self,
        folder: str | os.PathLike[str],
        weights: "dict[str, np.ndarray]",
        format: str = "kbert",
    ) -> None:
        """Writes the config, the weights and the tokenizer to a folder, for `from_pretrained`."""
        shapes = {name: array.shape for name, array in weights.items()}
        weights = Tensors(shapes, weights.__getitem__)
        write_weights(folder, format, self.bert_config, weights)
        self.tokenizer.save_pretrained(folder, format=format)
