"""Task regress: a number for a text, or for a pair of texts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kbert.data import validation
from kbert.data.columns import SECOND_TEXTS, ColumnAliases
from kbert.data.examples import TextExample
from kbert.tasks import metrics
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.task import Encoded, TextTask


class RegressionEndpoint(Endpoint):
    """Predicts a number."""

    name = "regress"
    forward_spec: dict[str, tuple[str, str]] = {"logits": ("B1", "the number")}
    standard_api: str | None = "regress"
    output_spec: dict[str, str] = {"score": "(B,) float32, the number"}

    def postprocess(
        self, outputs: Mapping[str, tf.Tensor], features: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        return {"score": outputs["logits"][:, 0]}


class Regression(TextTask):
    """A number for a text or a pair of texts, trained with the squared error."""

    name = "regress"
    summary = "a number"
    metric = "spearman"
    less_is_better: tuple[str, ...] = ("mse", "mae")
    problem_type: str | None = "regression"
    endpoint: type[Endpoint] | None = RegressionEndpoint
    aliases: ColumnAliases = ColumnAliases(text_pair=SECOND_TEXTS)
    label: "staticmethod[[object, str], float]" = staticmethod(validation.target)

    def targets(self, examples: Sequence[TextExample]) -> np.ndarray:
        """Returns the target numbers, (N,) float32."""
        return np.array([example.label for example in examples], np.float32)

    def label_summary(self, examples: Sequence[TextExample]) -> str:
        targets = self.targets(examples)
        return f"{targets.min():g} to {targets.max():g}, mean {targets.mean():g}"

    def losses(
        self, outputs: Mapping[str, tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        losses = tf.square(outputs["logits"][:, 0] - labels)
        return losses, tf.zeros_like(losses)

    def soft_losses(
        self,
        outputs: Mapping[str, tf.Tensor],
        teacher_outputs: Mapping[str, tf.Tensor],
        temperature: float,
    ) -> tf.Tensor:
        """Returns the squared difference; the temperature does not apply to numbers."""
        return tf.square(outputs["logits"][:, 0] - teacher_outputs["logits"][:, 0])

    def predictions(
        self,
        examples: Sequence[TextExample],
        encoded: Encoded,
        outputs: Iterable[dict[str, np.ndarray]],
    ) -> list[dict[str, Any]]:
        return [{"score": float(output["logits"][0])} for output in outputs]

    def scores(
        self, examples: Sequence[TextExample], predictions: Sequence[dict[str, Any]]
    ) -> dict[str, float]:
        return metrics.regression_scores(
            np.array([example.label for example in examples]),
            np.array([prediction["score"] for prediction in predictions]),
        )
