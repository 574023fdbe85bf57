"""The task regress: a number for a text or a pair of texts."""

from collections.abc import Sequence
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
from kbert.tasks.outputs import Outputs, Predictions, TensorDict
from kbert.tasks.text_task import TextTask


class RegressionEndpoint(Endpoint):
    """Predicts a number, or several if the model has several outputs."""

    name = "regress"
    forward_spec: dict[str, tuple[str, str]] = {"logits": ("B1", "the number")}
    standard_api: str | None = "regress"
    output_spec: dict[str, str] = {"score": "(B,) float32, the number"}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.model.config.num_labels > 1:
            self.forward_spec: dict[str, tuple[str, str]] = {"logits": ("BC", "the numbers")}
            self.output_spec: dict[str, str] = {"scores": "(B, C) float32, the numbers"}
            self.standard_api: str | None = None  # the Regress API returns one number per text

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        logits = outputs["logits"]
        return {"scores": logits} if "scores" in self.output_spec else {"score": logits[:, 0]}


class Regression(TextTask):
    """The task of predicting a number for a text or a pair of texts, with the squared error."""

    name = "regress"
    metric = "spearman"
    lower_is_better: tuple[str, ...] = ("mse", "mae")
    problem_type: str | None = "regression"
    endpoint: type[Endpoint] | None = RegressionEndpoint
    roles: TextRoles = TextRoles(texts=(1, 2), label="number")
    label: "staticmethod[[object, str], float]" = staticmethod(validation.parse_number_label)

    def targets(self, examples: Sequence[TextExample]) -> np.ndarray:
        """Returns the labels of examples, (N,) float32.

        Raises:
            UserError: the model has several outputs.
        """
        if len(self.label_names or ()) > 1:
            raise UserError(
                f"the model predicts {len(self.label_names)} numbers for a text, but kbert trains "
                f"and evaluates only models that predict one. Use it with kbert.predict."
            )
        return np.array([example.label for example in examples], np.float32)

    def label_summary(self, examples: Sequence[TextExample]) -> str:
        targets = self.targets(examples)
        return f"{targets.min():g} to {targets.max():g}, mean {targets.mean():g}"

    def losses(self, outputs: TensorDict, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        losses = tf.square(outputs["logits"][:, 0] - labels)
        return losses, tf.zeros_like(losses)

    def soft_losses(
        self, outputs: TensorDict, teacher_outputs: TensorDict, temperature: float
    ) -> tf.Tensor:
        """Returns the squared differences from the teacher, (B,); the temperature has no effect."""
        return tf.square(outputs["logits"][:, 0] - teacher_outputs["logits"][:, 0])

    def predictions(
        self, examples: Sequence[TextExample], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        rows = [output["logits"].tolist() for output in outputs]
        if rows and len(rows[0]) > 1:
            return [{"scores": dict(zip(self.label_names, row, strict=True))} for row in rows]
        return [{"score": row[0]} for row in rows]

    @staticmethod
    def to_endpoint_output(prediction: dict[str, Any]) -> dict[str, Any]:
        if "scores" in prediction:
            return {"scores": list(prediction["scores"].values())}
        return prediction

    def scores(self, examples: Sequence[TextExample], predictions: Predictions) -> dict[str, float]:
        return metrics.regression_scores(
            np.array([example.label for example in examples]),
            np.array([prediction["score"] for prediction in predictions]),
        )
