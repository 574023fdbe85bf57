"""The base class of endpoints: a prediction method as a graph from texts to results."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.model.models import BertModel

if TYPE_CHECKING:
    import tensorflow as tf

    from kbert.inference.predictor import Predictor
    from kbert.model.pretrained import PretrainedModel
    from kbert.tasks.task import Task
    from kbert.tokenizer.tokenizer import BertTokenizer


class Endpoint(abc.ABC):
    """A prediction method as a graph, for exports.

    Args:
        predictor: Predictor for a model of the task's `model_class`; without a task, of this
            class's `model_class`.
        task: Task, or None.
        takes_pairs: whether each text has a second text, `text_pair`.

    Attributes:
        name: str. texts: dict of input name -> number of axes; all inputs are strings.
        forward_spec: dict of the outputs of `forward` -> (shape, meaning). The shape has a letter
            per axis: B texts, L tokens, C labels or choices, M masks, V vocabulary, D width,
            E width of embeddings.
        standard_api: standard API of TensorFlow Serving that the endpoint supports: "classify"
            (with `probabilities`), "regress" (with `score`), or None.
        scored_by_ids: whether examples are scored with `from_ids`, because they consist of words.
        decisions: function from `logits` (numpy) to the predicted labels of texts, (B, S), or
            None.
        output_spec: dict of output name -> description with shape, dtype and meaning.
        padded: dict of output name -> padding value, for outputs padded to the longest row of a
            batch. In the first of these outputs, only padding has this value.
        compute: function, by default `forward`; may be replaced by a backend of
            `kbert.inference.backends`.
    """

    name: str
    predictor: "Predictor"
    task: "Task | None"
    model: "PretrainedModel"
    tokenizer: "BertTokenizer"
    max_seq_length: int
    compute: "Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]"
    model_class: "type[PretrainedModel]" = BertModel
    texts: dict[str, int] = {"text": 1}
    forward_spec: dict[str, tuple[str, str]] = {}
    standard_api: str | None = None
    decisions: Callable[[np.ndarray], np.ndarray] | None = None
    scored_by_ids: bool = False
    output_spec: dict[str, str] = {}
    padded: dict[str, str | int | float] = {}

    def __init__(
        self, predictor: "Predictor", task: "Task | None" = None, takes_pairs: bool = False
    ):
        self.predictor, self.task = predictor, task
        self.model, self.tokenizer = predictor.model, predictor.tokenizer
        self.max_seq_length = task.max_seq_length if task else predictor.max_seq_length
        self.compute = self.forward
        if takes_pairs:
            self.texts = {**self.texts, "text_pair": 1}

    @property
    def takes_choices(self) -> bool:
        """Whether each text has several choices, so that ids are (B, C, L)."""
        return 2 in self.texts.values()

    def from_texts(
        self, text: "tf.Tensor", text_pair: "tf.Tensor | None" = None
    ) -> "dict[str, tf.Tensor]":
        """Returns the results for texts, (B,) string each: a dict of tensors, batch axis first."""
        return self.from_ids(self.encode(text, text_pair))

    def reference_outputs(
        self, *texts: Sequence[Any], **named_texts: Sequence[Any]
    ) -> dict[str, Any]:
        """Runs `kbert.Predictor` on lists of str; returns results in the format of `from_texts`."""
        texts = [*texts, *(named_texts[name] for name in self.texts if name in named_texts)]
        predictions = self.predictor.predict(self.task.name, *texts)
        rows = [self.task.to_endpoint_output(prediction) for prediction in predictions]
        columns = {n: [row[n] for row in rows] for n in self.output_spec if n in rows[0]}
        return columns | {n: as_array(columns[n], fill) for n, fill in self.padded.items()}

    def from_ids(self, features: "Mapping[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Returns the results for the `ENCODER_FEATURES`, (B, L) int32 each."""
        return self.postprocess(self.compute(features), features)

    def forward(self, features: "Mapping[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Returns the outputs of the model: a dict of float32 tensors, batch axis first."""
        outputs = self.model(features, training=False)
        return {name: outputs[name] for name in self.forward_spec}

    @abc.abstractmethod
    def postprocess(
        self, outputs: "dict[str, tf.Tensor]", features: "Mapping[str, tf.Tensor]"
    ) -> "dict[str, tf.Tensor]":
        """Converts the outputs of `forward` for features to results."""

    def encode(
        self,
        text: "tf.Tensor",
        text_pair: "tf.Tensor | None" = None,
        tokenizer: "BertTokenizer | None" = None,
    ) -> "dict[str, tf.Tensor]":
        """Returns the features of texts, truncated to `max_seq_length`, padded to the longest."""
        tokenizer = tokenizer or self.tokenizer
        return tokenizer(text, text_pair, max_length=self.max_seq_length, padding="longest")

    def trackables(self) -> list[Any]:
        """Returns the objects that a SavedModel must track in addition to the weights."""
        return [self.tokenizer]


def as_array(rows: Sequence[Sequence[Any]], fill: str | int | float) -> np.ndarray:
    """Converts lists of different lengths to an array padded with `fill`: (B, S) or (B, S, ...)."""
    width = max(map(len, rows), default=0)
    empty = np.full(np.shape(next((row[0] for row in rows if row), fill)), fill).tolist()
    return np.array([[*row, *[empty] * (width - len(row))] for row in rows])
