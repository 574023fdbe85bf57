"""The base class of endpoints, which build the graph of a prediction method for exports."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.model.models import BertModel
from kbert.settings import TextLimits
from kbert.tasks.limits import with_text_limit_checks, with_token_limit_check
from kbert.tasks.outputs import TensorDict
from kbert.tasks.span_ops import apply_in_batches

if TYPE_CHECKING:
    from kbert.inference.predictor import Predictor
    from kbert.model.pretrained import PretrainedModel
    from kbert.tasks.task import Task
    from kbert.tokenizer.tokenizer import BertTokenizer


class Endpoint:
    """A prediction method as a TensorFlow graph; `from_texts` consists of three steps.

    1. `encode_texts` converts B texts to N rows of ids: one row per text, window or choice.
    2. `from_ids` runs the model on the rows.
    3. `decode` combines the outputs of the rows of each text. Only endpoints where a text may have
       several rows need it.

    A server can therefore combine rows of several requests in a batch, and can limit how many rows
    of one request are in it.

    Args:
        predictor: Predictor for a model of the task's `model_class`; without a task, of this
            class's `model_class`.
        task: Task, or None.
        takes_pairs: whether each text has a second text, `text_pair`.

    Attributes:
        name: name of the prediction method.
        texts: dict of input name -> number of axes; all inputs are strings.
        forward_spec: dict of the outputs of `forward` -> (shape, meaning). The shape has a letter
            per axis: B texts, L tokens, C labels or choices, M masks, V vocabulary, D width,
            E width of embeddings.
        standard_api: standard API of TensorFlow Serving that the endpoint supports: "classify"
            (with `probabilities`), "regress" (with `score`), or None.
        scored_by_ids: whether labeled examples are scored with `from_ids`, because their texts are
            already split into words.
        labels_from_logits: function from the array `logits` to the predicted labels, (B, S), or
            None.
        output_spec: dict of output name -> description with shape, dtype and meaning.
        padded: dict of output name -> padding value, for outputs padded to the longest row of a
            batch. In the first of these outputs, only padding has this value.
        token_outputs: names of the outputs of `from_ids` with a value for each token, (B, L, ...).
        limits: TextLimits of the graph.
        compute: the function that `from_ids` calls to run the model. It is `forward`, unless it is
            replaced by a function of a backend in `kbert.inference.backends`.
    """

    name: str
    predictor: "Predictor"
    task: "Task | None"
    model: "PretrainedModel"
    tokenizer: "BertTokenizer"
    max_seq_length: int
    compute: Callable[[TensorDict], TensorDict]
    model_class: "type[PretrainedModel]" = BertModel
    texts: dict[str, int] = {"text": 1}
    forward_spec: dict[str, tuple[str, str]] = {}
    standard_api: str | None = None
    labels_from_logits: Callable[[np.ndarray], np.ndarray] | None = None
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

    def from_texts(self, **texts: tf.Tensor) -> TensorDict:
        """Returns the results for texts, (B,) string each: a dict of tensors, batch axis first.

        Raises:
            tf.errors.InvalidArgumentError: a text exceeds `limits`.
        """
        features, extra = self.encode_limited(**texts)
        if not self.decodes:
            return self.from_ids(features)
        return self.decode(texts, extra, apply_in_batches(self.from_ids, features))

    def encode_limited(self, **texts: tf.Tensor) -> tuple[TensorDict, TensorDict]:
        """Checks that the texts do not exceed `limits`, and returns the results of `encode_texts`.

        Raises:
            tf.errors.InvalidArgumentError: a text exceeds `limits`.
        """
        return self.encode_texts(**with_text_limit_checks(texts, self.limits))

    def encode_texts(self, **texts: tf.Tensor) -> tuple[TensorDict, TensorDict]:
        """Converts texts to rows of ids.

        Returns:
            dict of the `ENCODER_FEATURES` of N rows, (N, L) int32 each, or (N, 1, L) if
            `takes_choices`; and a dict of tensors for `decode`.
        """
        return self.encode(**texts), {}

    def decode(self, texts: TensorDict, extra: TensorDict, outputs: TensorDict) -> TensorDict:
        """Combines the outputs of N rows to the results of B texts.

        Args:
            texts: the arguments of `encode_texts`.
            extra: the second result of `encode_texts`.
            outputs: the results of `from_ids` for the N rows.
        """
        return dict(outputs)

    def reference_outputs(
        self, *texts: Sequence[Any], **named_texts: Sequence[Any]
    ) -> dict[str, Any]:
        """Returns the results of `kbert.Predictor` for lists, in the format of `from_texts`."""
        texts = [*texts, *(named_texts[name] for name in self.texts if name in named_texts)]
        predictions = self.predictor.predict(self.task.name, *texts)
        rows = [self.task.to_endpoint_output(prediction) for prediction in predictions]
        columns = {n: [row[n] for row in rows] for n in self.output_spec if n in rows[0]}
        return columns | {n: as_array(columns[n], fill) for n, fill in self.padded.items()}

    def from_ids(self, features: TensorDict) -> TensorDict:
        """Returns the results for the `ENCODER_FEATURES`: (B, L), or (B, C, L) for choices."""
        return self.postprocess(self.compute(features), features)

    def forward(self, features: TensorDict) -> TensorDict:
        """Returns the model outputs in `forward_spec`: a dict of float32 tensors, batch first."""
        outputs = self.model(features, training=False)
        return {name: outputs[name] for name in self.forward_spec}

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        """Converts the outputs of `forward` for `features` to the results of `from_ids`."""
        return outputs

    def encode(
        self,
        text: tf.Tensor,
        text_pair: tf.Tensor | None = None,
        tokenizer: "BertTokenizer | None" = None,
    ) -> TensorDict:
        """Returns the features of texts, (B, L) int32 each.

        The sequences are truncated to `max_seq_length` and padded to the longest one.

        Args:
            text, text_pair: (B,) string.
            tokenizer: BertTokenizer; None for the endpoint's own.
        """
        tokenizer = tokenizer or self.tokenizer
        segments = [self.token_ids(x, tokenizer) for x in (text, text_pair) if x is not None]
        return tokenizer.pack(segments, self.max_seq_length, padding="longest")

    def token_ids(
        self, texts: tf.Tensor, tokenizer: "BertTokenizer | None" = None
    ) -> tf.RaggedTensor:
        """Returns the WordPiece ids of texts, (B, None) ragged; equal texts are tokenized once.

        Raises:
            tf.errors.InvalidArgumentError: a text has more tokens than `limits` allows.
        """
        distinct, index = tf.unique(tf.convert_to_tensor(texts, tf.string))
        ids = (tokenizer or self.tokenizer).tokenize(distinct)
        return tf.gather(with_token_limit_check(ids, self.limits), index)

    def trackables(self) -> list[Any]:
        """Returns the objects that a SavedModel must track in addition to the weights."""
        return [self.tokenizer]


def as_array(rows: Sequence[Sequence[Any]], fill: str | int | float) -> np.ndarray:
    """Converts B lists to an array (B, S) or (B, S, ...), where `fill` pads the shorter lists."""
    width = max(map(len, rows), default=0)
    empty = np.full(np.shape(next((row[0] for row in rows if row), fill)), fill).tolist()
    return np.array([[*row, *[empty] * (width - len(row))] for row in rows])
