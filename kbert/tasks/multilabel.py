"""The task multilabel: any number of C labels for a text or a pair of texts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kbert.data import validation
from kbert.data.examples import TextExample
from kbert.data.text_columns import TextRoles
from kbert.errors import UserError
from kbert.tasks import metrics
from kbert.tasks.encoding import Encoded
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.labels import all_label_names, all_label_numbers
from kbert.tasks.losses import soft_losses
from kbert.tasks.outputs import Outputs, Predictions, TensorDict
from kbert.tasks.text_task import TextTask


class MultiLabelEndpoint(Endpoint):
    """Predicts which of C labels a text has."""

    name = "multilabel"
    forward_spec: dict[str, tuple[str, str]] = {
        "logits": ("BC", "one per label; the sigmoid gives the probabilities")
    }
    standard_api: str | None = "classify"
    labels_from_logits: Callable[[np.ndarray], np.ndarray] | None = staticmethod(
        lambda logits: logits > 0
    )
    output_spec: dict[str, str] = {
        "labels": "(B, S) string, labels with a probability above 1/2; padded with empty strings",
        "probabilities": "(B, C) float32, the probabilities of all labels",
    }
    padded: dict[str, str | int | float] = {"labels": ""}

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        logits = outputs["logits"]
        rows = tf.broadcast_to(tf.constant(self.task.label_names), tf.shape(logits))
        labels = tf.ragged.boolean_mask(rows, logits > 0)
        return {"labels": labels.to_tensor(""), "probabilities": tf.sigmoid(logits)}


class MultiLabel(TextTask):
    """The task of predicting which of C labels a text has: those with a probability above 1/2."""

    name = "multilabel"
    metric = "f1_micro"
    problem_type: str | None = "multi_label_classification"
    endpoint: type[Endpoint] | None = MultiLabelEndpoint
    min_labels = 1
    roles: TextRoles = TextRoles(label="list")

    @staticmethod
    def label(value: object, where: str) -> tuple[str, ...]:
        return validation.parse_label_list(value)

    @classmethod
    def standardize_examples(
        cls, examples: list[TextExample], note: Callable[[str], object]
    ) -> list[TextExample]:
        """Converts multi-hot lists, with 0 or 1 for each label, to lists of the ids with 1.

        The lists of a file are multi-hot if one of them contains a value twice, or if they are
        exactly [0, 1] and [1, 0]. Other examples are returned unchanged.

        Raises:
            UserError: only some examples have multi-hot lists, or these lists differ in length.
        """
        lists = {example.label for example in examples}
        repeated = [row for row in lists if len({*row}) < len(row)]
        if not repeated and lists != {("0", "1"), ("1", "0")}:
            return examples
        bits, size = {"0": 0, "1": 1, "false": 0, "true": 1}, len((repeated or [("0", "1")])[0])
        for example in examples:
            if len(example.label) != size or not {name.lower() for name in example.label} <= {
                *bits
            }:
                raise UserError(
                    f"{example.where}: the labels are {example.label}, but other examples of the "
                    f"file have {size} values, 0 or 1 for each label. Write all labels as such "
                    f"lists, or as lists of label names."
                )
        note(f"each example has 0 or 1 for each label; the label ids are 0 to {size - 1}")
        return [
            dataclasses.replace(
                example,
                label=tuple(str(i) for i, name in enumerate(example.label) if bits[name.lower()]),
            )
            for example in examples
        ]

    @staticmethod
    def from_endpoint_output(output: dict[str, Any]) -> dict[str, Any]:
        return output | {"labels": [name.decode() for name in output["labels"] if name]}

    def targets(self, examples: Sequence[TextExample]) -> np.ndarray:
        """Returns an (N, C) float32 array with 1 for the labels of each example, else 0.

        The C columns are `label_names`, followed by other labels that the examples have.
        """
        numbers = all_label_numbers(examples, self.label_names)
        names = all_label_names(examples, self.label_names)
        targets = np.zeros((len(examples), len(names)), np.float32)
        for row, example in zip(targets, examples, strict=True):
            row[[numbers[name] for name in example.label]] = 1
        return targets

    def losses(self, outputs: TensorDict, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = outputs["logits"]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)  # (B, C)
        right = tf.reduce_all((logits > 0) == (labels > 0.5), axis=1)
        return tf.reduce_mean(losses, axis=1), tf.cast(right, tf.float32)

    def soft_losses(
        self, outputs: TensorDict, teacher_outputs: TensorDict, temperature: float
    ) -> tf.Tensor:
        """Returns the binary distillation losses, (B,) float32, averaged over the labels."""
        both = [
            tf.stack([x["logits"], tf.zeros_like(x["logits"])], -1)
            for x in (outputs, teacher_outputs)
        ]
        return tf.reduce_mean(soft_losses(*both, temperature), axis=1)

    def predictions(
        self, examples: Sequence[TextExample], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        predictions = []
        for output in outputs:
            shares = 1 / (1 + np.exp(-output["logits"].astype(np.float64)))
            names = [
                name
                for name, logit in zip(self.label_names, output["logits"], strict=True)
                if logit > 0
            ]
            by_name = dict(zip(self.label_names, map(float, shares), strict=True))
            predictions.append({"labels": names, "scores": by_name})
        return predictions

    def scores(self, examples: Sequence[TextExample], predictions: Predictions) -> dict[str, float]:
        names = all_label_names(examples, self.label_names)
        predicted = [[name in row["labels"] for name in names] for row in predictions]
        return metrics.multilabel_scores(self.targets(examples) > 0, np.array(predicted))
