"""Task regress: a number for a text, or for a pair of texts."""

import numpy as np
import tensorflow as tf

from kbert.data import validation
from kbert.data.columns import SECOND_TEXTS, ColumnAliases
from kbert.tasks import metrics
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.task import TextTask


class RegressionEndpoint(Endpoint):
    """A number."""

    name = "regress"
    forward_spec = {"logits": ("B1", "the number")}
    standard_api = "regress"
    output_spec = {"score": "(B,) float32, the number"}

    def postprocess(self, outputs, features):
        return {"score": outputs["logits"][:, 0]}


class Regression(TextTask):
    """A number for a text or a pair of texts, by least squares."""

    name = "regress"
    summary = "a number"
    metric = "spearman"
    less_is_better = ("mse", "mae")
    problem_type = "regression"
    endpoint = RegressionEndpoint
    aliases = ColumnAliases(text_pair=SECOND_TEXTS)
    label = staticmethod(validation.target)

    def targets(self, examples):
        """(N,) float32."""
        return np.array([example.label for example in examples], np.float32)

    def losses(self, outputs, labels):
        losses = tf.square(outputs["logits"][:, 0] - labels)
        return losses, tf.zeros_like(losses)

    def soft_losses(self, outputs, teacher_outputs, temperature):
        """The squared difference; a number cannot be softened."""
        return tf.square(outputs["logits"][:, 0] - teacher_outputs["logits"][:, 0])

    def predictions(self, examples, encoded, outputs):
        return [{"score": float(output["logits"][0])} for output in outputs]

    def scores(self, examples, predictions):
        return metrics.regression_scores(
            np.array([example.label for example in examples]),
            np.array([prediction["score"] for prediction in predictions]),
        )
