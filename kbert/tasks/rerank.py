"""The task rerank: the relevance of a text to a query, from a model that reads both at once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.data.embedding_columns import find_texts, parse_texts
from kbert.data.examples import ChoiceExample, TextExample, open_records
from kbert.data.records import BadExample
from kbert.errors import UserError
from kbert.tasks import losses, metrics
from kbert.tasks.arguments import same_length
from kbert.tasks.encoding import Encoded, encode_choices
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.outputs import Outputs, Predictions, TensorDict
from kbert.tasks.regress import Regression

if TYPE_CHECKING:
    from typing import Self, TypeAlias

    from kbert.config import BertConfig
    from kbert.data.columns import Columns
    from kbert.data.records import Record, Records
    from kbert.settings.tasks import ColumnConfig
    from kbert.tokenizer.tokenizer import BertTokenizer

    # A pair with a label; or a query, whose choices are the positive and the negatives.
    Example: TypeAlias = TextExample | ChoiceExample


class RerankEndpoint(Endpoint):
    """Scores how relevant a text, `text_pair`, is to a query, `text`."""

    name = "rerank"
    texts: dict[str, int] = {"text": 1, "text_pair": 1}
    forward_spec: dict[str, tuple[str, str]] = {"logits": ("B1", "the sigmoid is the score")}
    standard_api: str | None = "regress"
    output_spec: dict[str, str] = {"score": "(B,) float32, the relevance, from 0 to 1"}

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        return {"score": tf.sigmoid(outputs["logits"][:, 0])}


class Reranking(Regression):
    """The task of scoring how relevant a text is to a query, by a cross-encoder with one output.

    The loss of a pair with a label is the binary cross-entropy. The loss of a query with a positive
    and negatives is the cross-entropy of the positive among these texts; Nogueira et al. 2019
    (arXiv:1910.14424) use the first, Gao et al. 2021 (arXiv:2101.08751) the second.
    """

    name = "rerank"
    method: str | None = "rerank"
    metric = "average_precision"
    lower_is_better: tuple[str, ...] = ()
    problem_type: str | None = None  # as in sentence-transformers
    endpoint: type[Endpoint] | None = RerankEndpoint
    takes_pairs = True
    texts: tuple[int, int | None] = (2, 2)
    final_format = "hf"

    @classmethod
    def from_settings(
        cls, settings: dict[str, Any], tokenizer: "BertTokenizer", config: "BertConfig"
    ) -> "Self":
        if config.num_labels != 1:
            raise UserError(
                f"rerank requires a model with one output; this model has {config.num_labels}. "
                f"Fine-tune it with --task=rerank, or use the method classify."
            )
        return super().from_settings(settings, tokenizer, config)

    @classmethod
    def reader(
        cls, source: str, config: "ColumnConfig", labeled: bool
    ) -> "tuple[Records, Callable[[str, Record], Example]]":
        records = open_records(source, cls.name)
        columns = find_texts(records, config, labeled)
        if labeled and columns.label is None and not columns.choices:
            raise UserError(
                f"{records.name} has pairs of texts, but neither labels nor negatives. Add a "
                f"column named label, 1 for relevant texts and 0 for others, or set "
                f"--label_column; or add columns named negative_1, negative_2 and so on, which "
                f"kbert.mine finds."
            )
        return records, functools.partial(_parse_example, columns)

    @classmethod
    def standardize_examples(
        cls, examples: "list[Example]", note: Callable[[str], object]
    ) -> "list[Example]":
        for example in examples:
            if not 0 <= example.label <= 1:
                raise UserError(
                    f"{example.where}: the label must be from 0 to 1; got {example.label:g}. "
                    f"Scale the labels of the file to 0 to 1, or use --task=regress."
                )
        return examples

    @classmethod
    def examples(cls, queries: Sequence[str], texts: Sequence[str]) -> list[TextExample]:
        texts = same_length(queries, texts, "texts", of="queries")
        return [TextExample("", query, text) for query, text in zip(queries, texts, strict=True)]

    @classmethod
    def split_groups(cls, examples: "Sequence[Example]") -> tuple[list[Any], list[Any] | None]:
        return [None] * len(examples), [example.text for example in examples]

    def adapt(
        self, base: "BertConfig", examples: "Mapping[str, Sequence[Example]]"
    ) -> dict[str, Any]:
        evaluated = examples.get("eval", examples["train"])
        self.metric: str = type(self).metric
        if isinstance(evaluated[0], ChoiceExample):
            self.metric = "mrr@10"
        elif not _are_binary(evaluated):
            self.metric = "spearman"
        return {"label_names": None}

    def config_fields(self) -> dict[str, Any]:
        # Without the name of the only output: a head is used whatever its output is called.
        return {"num_labels": 1, "problem_type": self.problem_type}

    def label_summary(self, examples: "Sequence[Example]") -> str:
        if isinstance(examples[0], ChoiceExample):
            return ""
        return super().label_summary(examples)

    def encode(
        self, examples: "Sequence[Example]", class_weights: np.ndarray | None = None
    ) -> Encoded:
        first = examples[0]
        for example in examples:
            if _num_choices(example) != _num_choices(first):
                raise UserError(
                    f"{example.where}: the examples of a split must all have a label, or all "
                    f"have the same number of negatives; this one differs from {first.where}."
                )
        if isinstance(first, ChoiceExample):
            return Encoded(encode_choices(self.tokenizer, examples, self.max_seq_length))
        return super().encode(examples)

    def losses(self, outputs: TensorDict, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = outputs["logits"][..., 0]
        if logits.shape.rank == 2:  # (B, C), for C texts per query
            return losses.choice_losses(logits, labels)
        correct = tf.cast((logits > 0) == (labels > 0.5), tf.float32)
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits), correct

    def soft_losses(
        self, outputs: TensorDict, teacher_outputs: TensorDict, temperature: float
    ) -> tf.Tensor:
        """Returns the distillation losses, (B,) float32.

        They are the squared differences of the logits; with negatives, the losses of
        `kbert.tasks.losses.soft_losses` over the texts of each query.
        """
        if outputs["logits"].shape.rank == 2:
            return super().soft_losses(outputs, teacher_outputs, temperature)
        both = outputs["logits"][..., 0], teacher_outputs["logits"][..., 0]
        return losses.soft_losses(*both, temperature)

    def predictions(
        self, examples: "Sequence[Example]", encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        """Returns dicts of `score`, or of `scores` of the positive and the negatives."""
        predictions = []
        for output in outputs:
            scores = 1 / (1 + np.exp(-output["logits"][..., 0].astype(np.float64)))
            predictions.append({"scores" if scores.ndim else "score": scores.tolist()})
        return predictions

    @staticmethod
    def to_endpoint_output(prediction: dict[str, Any]) -> dict[str, Any]:
        return prediction

    def scores(self, examples: "Sequence[Example]", predictions: Predictions) -> dict[str, float]:
        if isinstance(examples[0], ChoiceExample):
            return metrics.ranking_scores([[_rank(row["scores"])] for row in predictions])
        labels = np.array([example.label for example in examples])
        scores = np.array([prediction["score"] for prediction in predictions])
        if _are_binary(examples):
            return metrics.relevance_scores(labels, scores)
        correlations = metrics.regression_scores(labels, scores)
        return {name: correlations[name] for name in ("spearman", "pearson")}


def _parse_example(columns: "Columns", where: str, record: "Record") -> "Example":
    """Returns the example of a record.

    Raises:
        BadExample: a value is missing or invalid, or a negative is the same as the positive.
    """
    parsed = parse_texts(columns, where, record)
    query, text, *negatives = parsed.texts
    if text in negatives:
        number = negatives.index(text) + 1
        raise BadExample(f"negative {number} is the same text as the positive")
    if columns.choices:
        return ChoiceExample(where, query, (text, *negatives), 0)
    return TextExample(where, query, text, parsed.label)


def _num_choices(example):
    """Returns the number of texts of a query; 0 for a pair."""
    return len(getattr(example, "choices", ()))


def _are_binary(examples):
    return all(example.label in (0, 1) for example in examples)


def _rank(scores):
    """Returns the rank of the first score, from 1; texts with the same score rank before it."""
    return int(np.count_nonzero(np.array(scores) >= scores[0]))
