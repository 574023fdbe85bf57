"""The task choice: one of several texts."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.data.choices import choice_records
from kbert.data.examples import ChoiceExample, open_records
from kbert.errors import UserError
from kbert.model.models import BertForMultipleChoice
from kbert.tasks.arguments import same_length
from kbert.tasks.encoding import Encoded, encode_choices
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.outputs import Outputs, Predictions, TensorDict, softmax
from kbert.tasks.span_ops import apply_in_batches
from kbert.tasks.task import Task

if TYPE_CHECKING:
    from kbert.data.records import Record, Records
    from kbert.settings.tasks import ColumnConfig


class ChoiceEndpoint(Endpoint):
    """Predicts the choice that fits a text best."""

    name = "choose"
    texts: dict[str, int] = {"text": 1, "choices": 2}
    forward_spec: dict[str, tuple[str, str]] = {
        "logits": ("BC", "one per choice; the softmax gives the probabilities")
    }
    output_spec: dict[str, str] = {
        "choice": "(B,) int32, the index of the best choice",
        "text": "(B,) string, the text of the best choice",
        "score": "(B,) float32, the probability of the best choice",
        "probabilities": "(B, C) float32, the probabilities of all choices",
    }

    def encode_texts(self, text: tf.Tensor, choices: tf.Tensor) -> tuple[TensorDict, TensorDict]:
        B, C = tf.unstack(tf.shape(choices))
        # Truncate the texts before they are repeated for each choice, to save memory.
        text_ids = self.token_ids(text)[:, : self.max_seq_length]
        text_ids = tf.gather(text_ids, tf.repeat(tf.range(B), C))
        segments = [text_ids, self.token_ids(tf.reshape(choices, [-1]))]
        features = self.tokenizer.pack(segments, self.max_seq_length, padding="longest")
        return {name: x[:, None] for name, x in features.items()}, {}  # (B * C, 1, L)

    def from_ids(self, features: TensorDict) -> TensorDict:
        B, C, L = tf.unstack(tf.shape(features["input_ids"]))
        rows = {name: tf.reshape(x, [B * C, 1, L]) for name, x in features.items()}
        logits = apply_in_batches(self.compute, rows)["logits"]
        return {"logits": tf.reshape(logits, [B, C])}

    def decode(self, texts: TensorDict, extra: TensorDict, outputs: TensorDict) -> TensorDict:
        choices = texts["choices"]
        probabilities = tf.nn.softmax(tf.reshape(outputs["logits"], tf.shape(choices)))
        choice = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        return {
            "choice": choice,
            "text": tf.gather(choices, choice, batch_dims=1),
            "score": tf.reduce_max(probabilities, axis=-1),
            "probabilities": probabilities,
        }


class Choice(Task):
    """The task of choosing one of several texts; each is the second segment of its own sequence."""

    name = "choice"
    method: str | None = "choose"
    model_class = BertForMultipleChoice
    endpoint: type[Endpoint] | None = ChoiceEndpoint
    texts: tuple[int, int | None] = (3, None)
    example_fields: tuple[str, ...] = ("text", "choices")

    @classmethod
    def reader(
        cls, source: str, config: "ColumnConfig", labeled: bool
    ) -> "tuple[Records, Callable[[str, Record], ChoiceExample]]":
        return choice_records(open_records(source, cls.name), config, labeled)

    @classmethod
    def examples(
        cls, texts: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[ChoiceExample]:
        choices = same_length(texts, choices, "choices")
        for some in choices:
            if isinstance(some, str):
                raise UserError(
                    f"choices must be a list of texts for each text; got the str {some[:60]!r}."
                )
        counts = {len(some) for some in choices}
        if len(counts) > 1 or min(counts, default=2) < 2:
            raise UserError(
                f"all texts must have the same number of choices, at least 2; got {sorted(counts)}."
            )
        return [ChoiceExample("", t, tuple(c)) for t, c in zip(texts, choices, strict=True)]

    def config_fields(self) -> dict[str, Any]:
        return {}

    def label_summary(self, examples: Sequence[ChoiceExample]) -> str:
        counts = np.bincount([example.label for example in examples])
        return ", ".join(f"choice {i} {count:,} times" for i, count in enumerate(counts))

    def encode(
        self, examples: Sequence[ChoiceExample], class_weights: np.ndarray | None = None
    ) -> Encoded:
        return Encoded(encode_choices(self.tokenizer, examples, self.max_seq_length))

    def predictions(
        self, examples: Sequence[ChoiceExample], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        predictions = []
        for example, output in zip(examples, outputs, strict=True):
            shares = softmax(output["logits"])
            best = int(shares.argmax())
            predictions.append(
                {"choice": best, "text": example.choices[best], "score": float(shares[best])}
            )
        return predictions

    def scores(
        self, examples: Sequence[ChoiceExample], predictions: Predictions
    ) -> dict[str, float]:
        right = [e.label == p["choice"] for e, p in zip(examples, predictions, strict=True)]
        return {"accuracy": float(np.mean(right))}
