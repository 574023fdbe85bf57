"""Metrics on held-out text that can be compared between runs."""

import collections
import math
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.data.pretraining_batches import PretrainingExamples
from kbert.train.losses import MaskedLMObjective, PretrainingObjective

if TYPE_CHECKING:
    from kbert.corpus import Corpus
    from kbert.model.models import BertForMaskedLM, BertForPreTraining

# Constants, so that all runs are evaluated on the same pairs and masks.
SEED = 1
BATCH_SIZE = 32
MASK_RATE = 0.15


class HeldOutEvaluation:
    """Evaluates MLM and NSP, or MLM alone, on held-out text.

    Evaluation runs on one device, so that the metrics do not depend on the training devices.

    Args:
        examples: maximum number of examples, limited to one epoch. It is rounded down to whole
            batches of 32, but at least one batch is used.
    """

    def __init__(
        self,
        model: "BertForPreTraining | BertForMaskedLM",
        corpus: "Corpus",
        max_seq_length: int,
        examples: int,
        next_sentence: bool,
    ) -> None:
        self._model = model
        self._objective = PretrainingObjective(BATCH_SIZE) if next_sentence else MaskedLMObjective()
        self._examples = PretrainingExamples(
            corpus, max_seq_length, None, MASK_RATE, False, 0.0, SEED, next_sentence
        )
        count = min(examples, self._examples.count)
        self._batches = max(1, count // BATCH_SIZE)
        self._unigram_entropy = corpus.unigram_entropy()

    def metrics(self, batches: int | None = None) -> dict[str, float]:
        """Returns the objective's metrics, the MLM perplexity and the corpus' unigram entropy.

        Their names are prefixed with `eval_`, such as `eval_mlm_loss`, `eval_mlm_perplexity` and
        `eval_unigram_entropy` (nats). `batches` limits the number of batches of 32 examples.
        """
        totals = collections.Counter()
        for features in self._examples.dataset(BATCH_SIZE, steps=batches or self._batches):
            totals.update({name: float(x) for name, x in self._sums(features).items()})
        metrics = {f"eval_{name}": x for name, x in self._objective.metrics(totals).items()}
        metrics["eval_mlm_perplexity"] = math.exp(min(metrics["eval_mlm_loss"], 700))
        metrics["eval_unigram_entropy"] = self._unigram_entropy
        return metrics

    @tf.function(autograph=False)
    def _sums(self, features):
        return self._objective.sums(self._model(features, training=False), features)
