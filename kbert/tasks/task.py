"""The base class of the tasks.

Each task is a module in this folder. A task reads and encodes examples, computes the losses,
converts the model's outputs to predictions (dicts that can be written as JSON) and computes
metrics.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.fields import checked_value, range_text
from kbert.model.models import BertForSequenceClassification
from kbert.settings.tasks import FinetuneConfig
from kbert.tasks.encoding import Encoded
from kbert.tasks.labels import label_frequencies_text, rarest_labels
from kbert.tasks.losses import choice_losses, soft_losses
from kbert.tasks.outputs import Outputs, Predictions, TensorDict

if TYPE_CHECKING:
    from typing import Self, TypeAlias

    from kbert.config import BertConfig
    from kbert.data.records import Record, Records
    from kbert.inference.predictor import Predictor
    from kbert.model.pretrained import PretrainedModel
    from kbert.settings.tasks import ColumnConfig
    from kbert.tasks.endpoint import Endpoint
    from kbert.tokenizer.tokenizer import BertTokenizer

    Check: TypeAlias = tuple[Callable[[Any], bool], str]

# A check of a setting in `task.json` is a function that returns whether a value is valid, and a
# description of the valid values.
BOOL: "Check" = (lambda x: isinstance(x, bool), "true or false")
NUMBER: "Check" = (
    lambda x: type(x) in (int, float) and abs(x) < 1e30,
    "a number between -1e30 and 1e30",
)


def int_at_least(minimum: int) -> "Check":
    """Returns the check for an integer from `minimum` to 2**31 - 1."""
    valid = f"an integer from {minimum} to 2**31 - 1"
    return lambda x: type(x) is int and minimum <= x < 2**31, valid


def setting_check(field: "dataclasses.Field[Any]") -> "Check":
    """Returns the check for the value of a field that `kbert.fields.setting` created."""

    def fits(value):
        with contextlib.suppress(UserError):
            checked_value(field, value)
            return True
        return False

    choices, limits = field.metadata["choices"], field.metadata["limits"]
    parts = (field.metadata["help"], ", ".join(choices or ()), range_text(limits))
    return fits, f"a value of --{field.name} ({'; '.join(filter(None, parts))})"


class Task(abc.ABC):
    """Base class of the tasks.

    Args:
        tokenizer: BertTokenizer.
        label_names: tuple of str, in the order of the label ids; None for tasks without label
            names.
        max_seq_length: maximum length of a sequence in tokens, including special tokens; longer
            texts are truncated or split into windows.

    Attributes:
        name: name in --task and in `task.json`.
        method: name of the prediction method in --method and in `kbert.Predictor`.
        model_class: class in `kbert.model`.
        problem_type: value of the field `problem_type` of BertConfig.
        metric: name of the metric that selects the best checkpoint by default.
        lower_is_better: names of the metrics whose lowest value is the best.
        output_names: names of the model outputs that `predictions` requires.
        endpoint: subclass of Endpoint for exports; None if models of the task cannot be exported.
        max_seq_length: see above; the class attribute is the default.
        min_labels: minimum number of label names; 0 if the labels have no names.
        is_classification: whether each example has one of C classes, so that class weights apply.
        takes_pairs: whether every example has a second text.
        splits_into_windows: whether `encode` splits long texts into windows instead of
            truncating them.
        texts: minimum and maximum number of texts per prediction; a maximum of None means that
            there is none.
        example_fields: fields of an example that are the arguments of the method.
        unlabeled_task: name of another task whose `reader` reads the input files of
            `kbert.predict`; None if this task's `reader` reads them.
        task_specific_settings: dict of setting name -> check, such as `BOOL`, of the settings
            that only this task stores in `task.json`.
        config_class: FinetuneConfig, or a subclass whose additional `setting`s are flags of
            `kbert.finetune`, keys of `task.json` and attributes of the task.
        call_options: names of the attributes that `kbert.Predictor.predict` can set for one call.
        flags: names of the settings of FinetuneConfig that are an error with other tasks.
        compares_examples: whether the loss of an example depends on the other examples of the
            global batch. If so, `losses` takes the label weights as a third argument.
        final_format: format of the folders `best` and `final`; see `kbert.utils.formats.FORMATS`.
    """

    name: str = ""
    method: str | None = None
    model_class: "type[PretrainedModel]" = BertForSequenceClassification
    metric: str = "accuracy"
    lower_is_better: tuple[str, ...] = ()
    problem_type: str | None = None
    output_names: tuple[str, ...] = ("logits",)
    endpoint: "type[Endpoint] | None" = None
    max_seq_length: int = 128
    min_labels: int = 0
    is_classification: bool = False
    takes_pairs: bool = False
    splits_into_windows: bool = False
    texts: tuple[int, int | None] = (1, 1)
    example_fields: tuple[str, ...] = ("text",)
    unlabeled_task: str | None = None
    task_specific_settings: "dict[str, Check]" = {}
    config_class: type[FinetuneConfig] = FinetuneConfig
    call_options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    compares_examples: bool = False
    final_format: str = "kbert"

    def __init__(
        self,
        tokenizer: "BertTokenizer",
        label_names: tuple[str, ...] | None = None,
        max_seq_length: int = 128,
    ):
        self.tokenizer = tokenizer
        self.label_names = label_names
        self.max_seq_length = max_seq_length

    @classmethod
    def task_specific_fields(cls) -> "dict[str, dataclasses.Field[Any]]":
        """Returns the fields that `config_class` adds to FinetuneConfig, by name."""
        usual = {field.name for field in dataclasses.fields(FinetuneConfig)}
        fields = dataclasses.fields(cls.config_class)
        return {field.name: field for field in fields if field.name not in usual}

    @classmethod
    def default_max_seq_length(cls, init_from: str | None) -> int:
        """Returns the default `max_seq_length` for training that starts from `init_from`."""
        return cls.max_seq_length

    @classmethod
    def from_config(
        cls,
        config: FinetuneConfig,
        tokenizer: "BertTokenizer",
        label_names: tuple[str, ...] | None = None,
        allow_no_answer: bool = False,
    ) -> "Self":
        """Creates the task from a FinetuneConfig; see `kbert.tasks.registry.make_task`."""
        return cls(tokenizer, label_names, config.max_seq_length or cls.max_seq_length)

    @classmethod
    def from_settings(
        cls, settings: dict[str, Any], tokenizer: "BertTokenizer", config: "BertConfig"
    ) -> "Self":
        """Creates the task from the content of `task.json`.

        Args:
            settings: dict with `max_seq_length` and the `task_specific_settings` of `task.json`.
            tokenizer: BertTokenizer of the model.
            config: BertConfig of the model.
        """
        names = config.label_names or tuple(str(i) for i in range(config.num_labels))
        return cls(tokenizer, names, settings["max_seq_length"])

    @classmethod
    @abc.abstractmethod
    def reader(
        cls, source: str, config: "ColumnConfig", labeled: bool
    ) -> "tuple[Records, Callable[[str, Record], Any]]":
        """Returns the records of a source, and a function from (where, record) to an example.

        Args:
            source: path of a file, FOLDER or FOLDER:SPLIT of Hugging Face `datasets`, `tfds:NAME`
                or `tfds:NAME:SPLIT`.
            config: which columns to read, and how.
            labeled: whether to read labels; if False, they may be missing.

        Raises:
            UserError: the source cannot be read, or its columns are missing or ambiguous.
            BadExample: (raised by the returned function) the record is invalid.
        """

    @classmethod
    def standardize_examples(cls, examples: list[Any], note: Callable[[str], object]) -> list[Any]:
        """Returns a file's examples with their labels converted to the task's format.

        Examples without a valid label may be dropped.

        Args:
            examples: the labeled examples of a file.
            note: called with messages about the labels.

        Raises:
            UserError: the labels have different formats.
        """
        return examples

    @classmethod
    def checked_for_training(
        cls, examples: list[Any], skip_bad_lines: bool, report: Callable[[str], object]
    ) -> list[Any]:
        """Returns the examples whose labels can be learned; evaluation does not need this check.

        Args:
            examples: labeled examples.
            skip_bad_lines: whether to skip examples that cannot be learned, instead of raising.
            report: called with lines about the examples that were skipped or corrected.

        Raises:
            UserError: a label cannot be learned (the message names the file and the line), or all
                examples were skipped.
        """
        return examples

    @classmethod
    @abc.abstractmethod
    def examples(cls, *texts: Sequence[Any]) -> list[Any]:
        """Converts the arguments of the prediction method to unlabeled examples.

        Args:
            *texts: lists of equal length; optional ones may be None.

        Raises:
            UserError: the lists differ in length, or an element is invalid.
        """

    @classmethod
    def split_groups(cls, examples: Sequence[Any]) -> tuple[list[Any], list[Any] | None]:
        """Returns the arguments `classes` and `groups` of `kbert.data.splits.split_keys`."""
        return rarest_labels(examples) if cls.min_labels else [None] * len(examples), None

    def label_summary(self, examples: Sequence[Any]) -> str:
        """Returns the distribution of the labels as text; "" if the task has no label names."""
        return label_frequencies_text(examples, self.label_names) if self.label_names else ""

    def data_warnings(self, examples: Sequence[Any]) -> list[str]:
        """Returns warnings about labeled examples."""
        return []

    def predict(self, predictor: "Predictor", *texts: Sequence[Any]) -> list[Any]:
        """Returns the results of the prediction method, one per example.

        Args:
            predictor: Predictor of the model.
            *texts: as for `examples`.
        """
        return predictor.predictions(self, self.examples(*texts))

    @staticmethod
    def to_json(result: dict[str, Any]) -> dict[str, Any]:
        """Converts a result of `predict` to the JSON object that `kbert.predict` writes."""
        return result

    @staticmethod
    def from_endpoint_output(output: dict[str, Any]) -> dict[str, Any]:
        """Converts an endpoint's output for one example to a dict that `scores` accepts."""
        return output

    @staticmethod
    def to_endpoint_output(prediction: dict[str, Any]) -> dict[str, Any]:
        """Converts a result of `predict` to the endpoint's output for one example."""
        return prediction

    def adapt(self, base: "BertConfig", examples: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Adapts the task to the model and the examples before training.

        Args:
            base: config of the model to train.
            examples: dict of "train" and, if there are such examples, "eval" and "test" -> labeled
                examples.

        Returns:
            dict of the fields of BertConfig to change, in addition to `config_fields`.

        Raises:
            UserError: the examples and the settings are not compatible.
        """
        return {}

    def config_fields(self) -> dict[str, Any]:
        """Returns the fields of BertConfig that the task sets: dict of name -> value."""
        names = self.label_names
        return {
            "num_labels": len(names) if names else 1,
            "label_names": names,
            "problem_type": self.problem_type,
        }

    @abc.abstractmethod
    def encode(self, examples: Sequence[Any], class_weights: np.ndarray | None = None) -> Encoded:
        """Encodes examples, with their labels if they have any.

        Args:
            examples: at least one example; either all or none have labels.
            class_weights: loss weight of each class, (C,), or None. Only tasks with
                `is_classification` use it.
        """

    def losses(self, outputs: TensorDict, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the losses, and whether the predictions are correct.

        Args:
            outputs: outputs of the model.
            labels: the `labels` of the batch; see `kbert.data.bucketed_batches.EncodedExample`.

        Returns:
            Two float32 tensors with the shape of the batch's `label_weights`: (B,), or (B, L) for
            tags. The second is 1 for a correct prediction, else 0; it is always 0 if the labels are
            numbers.
        """
        return choice_losses(outputs["logits"], labels)

    def soft_losses(
        self, outputs: TensorDict, teacher_outputs: TensorDict, temperature: float
    ) -> tf.Tensor:
        """Returns the distillation losses, float32, with the shape of `losses`.

        Args:
            outputs, teacher_outputs: outputs of the model and of its teacher.
            temperature: divisor of both models' logits; see `kbert.tasks.losses.soft_losses`.
        """
        return soft_losses(outputs["logits"], teacher_outputs["logits"], temperature)

    def forward(self, model: "PretrainedModel", features: TensorDict) -> TensorDict:
        """Returns the model outputs from which predictions are made."""
        outputs = model(features, training=False)
        return {name: outputs[name] for name in self.output_names}

    @abc.abstractmethod
    def predictions(
        self, examples: Sequence[Any], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        """Converts model outputs to predictions; returns a dict for each example.

        Args:
            examples: the examples.
            encoded: result of `encode` for the examples.
            outputs: results of a BatchRunner for `encoded.items`, in order.
        """

    @abc.abstractmethod
    def scores(self, examples: Sequence[Any], predictions: Predictions) -> dict[str, Any]:
        """Returns the metrics for labeled examples: dict of name -> number or dict of metrics."""

    def report(self, examples: Sequence[Any], predictions: Predictions) -> str:
        """Returns a table of the metrics as text; "" if the task has no such table."""
        return ""
