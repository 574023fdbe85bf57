"""The base class of endpoints: a prediction method as a graph from texts to results."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.model.models import BertModel
from kbert.settings import TextLimits
from kbert.tasks.limits import limited_ids, limited_texts
from kbert.tasks.span_ops import in_parts

if TYPE_CHECKING:
    from kbert.inference.predictor import Predictor
    from kbert.model.pretrained import PretrainedModel
    from kbert.tasks.task import Task
    from kbert.tokenizer.tokenizer import BertTokenizer


class Endpoint(abc.ABC):
    """A prediction method as a graph, for exports: `from_texts`, a composition of three steps.

    `encode_texts` converts B texts to N rows of ids: a row for each text, window or choice.
    `from_ids` computes the rows. `decode` converts their outputs to the results of the texts; it is
    needed only if a text may have several rows. Servers can compute the rows of several requests
    together, and only as many of one request at a time as its share allows.

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
        token_outputs: names of the outputs of `from_ids` with a value for each token, (B, L, ...).
        limits: TextLimits of the graph.
        compute: function, by default `forward`; may be replaced by a backend of
            `kbert.inference.backends`.
    """

    name: str
    predictor: "Predictor"
    task: "Task | None"
    model: "PretrainedModel"
    tokenizer: "BertTokenizer"
    max_seq_length: int
    compute: Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]
    model_class: "type[PretrainedModel]" = BertModel
    texts: dict[str, int] = {"text": 1}
    forward_spec: dict[str, tuple[str, str]] = {}
    standard_api: str | None = None
    decisions: Callable[[np.ndarray], np.ndarray] | None = None
    scored_by_ids: bool = False
    output_spec: dict[str, str] = {}
    padded: dict[str, str | int | float] = {}
    token_outputs: tuple[str, ...] = ()
    limits: TextLimits = TextLimits()

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

    @property
    def decodes(self) -> bool:
        """Whether `decode` is needed, because a text may have several rows."""
        return type(self).decode is not Endpoint.decode

    def from_texts(self, **texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the results for texts, (B,) string each: a dict of tensors, batch axis first.

        Raises:
            tf.errors.InvalidArgumentError: a text exceeds `limits`.
        """
        features, extra = self.encode_limited(**texts)
        if not self.decodes:
            return self.from_ids(features)
        return self.decode(texts, extra, in_parts(self.from_ids, features))

    def encode_limited(
        self, **texts: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the results of `encode_texts`. Raises as `from_texts`."""
        return self.encode_texts(**limited_texts(texts, self.limits))

    def encode_texts(self, **texts: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the `ENCODER_FEATURES` of texts, (N, L) int32 each, and tensors for `decode`.

        If `takes_choices`, the features are (N, 1, L).
        """
        return self.encode(**texts), {}

    def decode(
        self,
        texts: Mapping[str, tf.Tensor],
        extra: Mapping[str, tf.Tensor],
        outputs: Mapping[str, tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        """Returns the results of B texts.

        Args:
            texts: the arguments of `encode_texts`. extra: its second result.
            outputs: the results of `from_ids` for its first result, N rows.
        """
        return dict(outputs)

    def reference_outputs(
        self, *texts: Sequence[Any], **named_texts: Sequence[Any]
    ) -> dict[str, Any]:
        """Runs `kbert.Predictor` on lists of str; returns results in the format of `from_texts`."""
        texts = [*texts, *(named_texts[name] for name in self.texts if name in named_texts)]
        predictions = self.predictor.predict(self.task.name, *texts)
        rows = [self.task.to_endpoint_output(prediction) for prediction in predictions]
        columns = {n: [row[n] for row in rows] for n in self.output_spec if n in rows[0]}
        return columns | {n: as_array(columns[n], fill) for n, fill in self.padded.items()}

    def from_ids(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the results for the `ENCODER_FEATURES`, (B, L) int32 each."""
        return self.postprocess(self.compute(features), features)

    def forward(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the outputs of the model: a dict of float32 tensors, batch axis first."""
        outputs = self.model(features, training=False)
        return {name: outputs[name] for name in self.forward_spec}

    @abc.abstractmethod
    def postprocess(
        self, outputs: dict[str, tf.Tensor], features: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Converts the outputs of `forward` for features to results."""

    def encode(
        self,
        text: tf.Tensor,
        text_pair: tf.Tensor | None = None,
        tokenizer: "BertTokenizer | None" = None,
    ) -> dict[str, tf.Tensor]:
        """Returns the features of texts, truncated to `max_seq_length`, padded to the longest."""
        tokenizer = tokenizer or self.tokenizer
        segments = [self.token_ids(x, tokenizer) for x in (text, text_pair) if x is not None]
        return tokenizer.pack(segments, self.max_seq_length, padding="longest")

    def token_ids(
        self, texts: tf.Tensor, tokenizer: "BertTokenizer | None" = None
    ) -> tf.RaggedTensor:
        """Returns the WordPiece ids of texts, (B, None) ragged; equal texts are tokenized once."""
        distinct, index = tf.unique(tf.convert_to_tensor(texts, tf.string))
        ids = (tokenizer or self.tokenizer).tokenize(distinct)
        return tf.gather(limited_ids(ids, self.limits), index)

    def trackables(self) -> list[Any]:
        """Returns the objects that a SavedModel must track in addition to the weights."""
        return [self.tokenizer]


def as_array(rows: Sequence[Sequence[Any]], fill: str | int | float) -> np.ndarray:
    """Converts lists of different lengths to an array padded with `fill`: (B, S) or (B, S, ...)."""
    width = max(map(len, rows), default=0)
    empty = np.full(np.shape(next((row[0] for row in rows if row), fill)), fill).tolist()
    return np.array([[*row, *[empty] * (width - len(row))] for row in rows])
