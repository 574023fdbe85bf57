"""The task classify: one of C labels for a text or a pair of texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kbert.data import validation
from kbert.data.examples import TextExample
from kbert.tasks import metrics
from kbert.tasks.encoding import Encoded
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.labels import all_label_names, all_label_numbers
from kbert.tasks.outputs import Outputs, Predictions, TensorDict, softmax
from kbert.tasks.text_task import TextTask


class ClassificationEndpoint(Endpoint):
    """Predicts one of C labels."""

    name = "classify"
    forward_spec: dict[str, tuple[str, str]] = {
        "logits": ("BC", "one per label; the softmax gives the probabilities")
    }
    standard_api: str | None = "classify"
    labels_from_logits: Callable[[np.ndarray], np.ndarray] | None = staticmethod(
        lambda logits: logits.argmax(-1)[:, None]
    )
    output_spec: dict[str, str] = {
        "label": "(B,) string, the most probable label",
        "score": "(B,) float32, the probability of the label",
        "probabilities": "(B, C) float32, the probabilities of all labels",
    }

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        probabilities = tf.nn.softmax(outputs["logits"])
        best = tf.argmax(probabilities, axis=-1)
        return {
            "label": tf.gather(tf.constant(self.task.label_names), best),
            "score": tf.reduce_max(probabilities, axis=-1),
            "probabilities": probabilities,
        }


class Classification(TextTask):
    """The task of predicting one of C labels for a text or a pair of texts."""

    name = "classify"
    problem_type: str | None = "single_label_classification"
    endpoint: type[Endpoint] | None = ClassificationEndpoint
    min_labels = 2
    is_classification = True

    @staticmethod
    def label(value: object, where: str) -> str:
        return validation.parse_class_label(value)

    @staticmethod
    def from_endpoint_output(output: dict[str, Any]) -> dict[str, Any]:
        return output | {"label": output["label"].decode()}

    def targets(self, examples: Sequence[TextExample]) -> np.ndarray:
        """Returns the id of each example's label, (N,) int32; see `all_label_numbers`."""
        numbers = all_label_numbers(examples, self.label_names)
        return np.array([numbers[example.label] for example in examples], np.int32)

    def predictions(
        self, examples: Sequence[TextExample], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        predictions = []
        for output in outputs:
            shares = softmax(output["logits"])
            best = int(shares.argmax())
            by_name = dict(zip(self.label_names, map(float, shares), strict=True))
            predictions.append(
                {"label": self.label_names[best], "score": float(shares[best]), "scores": by_name}
            )
        return predictions

    def predicted_numbers(self, predictions: Predictions) -> np.ndarray:
        """Returns the id of each predicted label, (N,) int."""
        return np.array([self.label_names.index(prediction["label"]) for prediction in predictions])

    def scores(self, examples: Sequence[TextExample], predictions: Predictions) -> dict[str, float]:
        return metrics.classification_scores(
            *(self.targets(examples), self.predicted_numbers(predictions)),
            len(all_label_names(examples, self.label_names)),
        )

    def report(self, examples: Sequence[TextExample], predictions: Predictions) -> str:
        return metrics.classification_report_text(
            *(self.targets(examples), self.predicted_numbers(predictions)),
            all_label_names(examples, self.label_names),
        )
