"""Held-out metrics that can be compared across runs."""

import math

import tensorflow as tf

from kbert.data.pretraining_batches import PretrainingExamples
from kbert.train.losses import PretrainingObjective
from kbert.train.metrics import MetricAccumulator

# One for all runs, whatever they train with: the same pairs and the same masks.
SEED = 1
BATCH_SIZE = 32
MASK_RATE = 0.15


class HeldOut:
    """MLM and NSP of a model on held-out text: sums over all examples, not means of means.

    It runs on one device, whatever trains the model, so that its numbers do not depend on that.

    Args:
        model: BertForPreTraining. corpus: `kbert.corpus.Corpus` of held-out text.
        max_seq_length: int.
        examples: how many, rounded down to whole batches of 32, at least one; at most an epoch.
    """

    def __init__(self, model, corpus, max_seq_length, examples):
        self._model = model
        self._objective = PretrainingObjective(BATCH_SIZE)
        self._examples = PretrainingExamples(
            corpus, max_seq_length, None, MASK_RATE, False, 0.0, SEED
        )
        count = min(examples, self._examples.windows.count)
        self._batches = max(1, count // BATCH_SIZE)
        self._unigram_entropy = corpus.unigram_entropy()

    def metrics(self):
        """dict of `PretrainingObjective.metrics`, perplexity, entropy, with `eval_` before each."""
        totals = MetricAccumulator()
        for features in self._examples.dataset(BATCH_SIZE, steps=self._batches):
            totals.add(self._sums(features))
        metrics = {
            f"eval_{name}": value for name, value in self._objective.metrics(totals.state).items()
        }
        metrics["eval_mlm_perplexity"] = math.exp(min(metrics["eval_mlm_loss"], 700))
        metrics["eval_unigram_entropy"] = self._unigram_entropy
        return metrics

    @tf.function(autograph=False)
    def _sums(self, features):
        return self._objective.sums(self._model(features, training=False), features)
