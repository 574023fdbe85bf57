"""The task embed: a vector for a text, trained on pairs, triplets or pairs with a score."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.config import EmbeddingConfig
from kbert.data.embedding_columns import embedding_records, is_plain_text, text_records
from kbert.data.examples import EmbeddingExample, open_records
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.model.models import BertForEmbedding
from kbert.tasks import embedding_losses, metrics
from kbert.tasks.encoding import Encoded, encode_texts, stack_items, with_labels
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.outputs import Outputs, Predictions, TensorDict, l2_normalize, similarities
from kbert.tasks.task import Task

if TYPE_CHECKING:
    from typing import Self

    from kbert.config import BertConfig
    from kbert.data.records import Record, Records
    from kbert.inference.predictor import Predictor
    from kbert.settings.tasks import ColumnConfig, FinetuneConfig
    from kbert.tokenizer.tokenizer import BertTokenizer

_SCORED = ("cosent", "cosine_similarity")  # losses for pairs with a score
_CHUNK = 1 << 22  # similarities to compute at once


class EmbedEndpoint(Endpoint):
    """Embeds a text as a vector, as the `embedding` settings of the config specify."""

    name = "embed"
    model_class = BertForEmbedding
    forward_spec: dict[str, tuple[str, str]] = {"embedding": ("BE", "the embeddings of the texts")}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.settings: EmbeddingConfig = self.model.config.embedding_settings
        length = "length 1" if self.settings.normalize else "not normalized"
        meaning = f"(B, E) float32, {self.settings.pooling} pooling, {length}"
        self.output_spec: dict[str, str] = {"embedding": meaning}

    def encode_texts(self, text: tf.Tensor) -> tuple[TensorDict, TensorDict]:
        if self.settings.prompt:
            text = tf.strings.join([self.settings.prompt, text])
        return super().encode_texts(text=text)

    def reference_outputs(self, text: Sequence[str]) -> dict[str, Any]:
        return {"embedding": self.predictor.embed(text)}


class Embedding(Task):
    """The task of embedding texts so that texts with a similar meaning have similar vectors.

    A single text is its own positive: its two vectors differ by dropout, as in SimCSE (Gao et al.
    2021, arXiv:2104.08821).

    Args:
        tokenizer, max_seq_length: as for `Task`.
        label_names: not used.
        settings: EmbeddingConfig; None for its defaults.

    Attributes:
        settings: EmbeddingConfig; `adapt` sets it for training.
        loss: name of the loss, one of the values of --loss; None until `adapt` sets it.
    """

    name = "embed"
    method: str | None = "embed"
    model_class = BertForEmbedding
    metric = "accuracy@1"
    output_names: tuple[str, ...] = ("embedding",)
    endpoint: type[Endpoint] | None = EmbedEndpoint
    unlabeled_task: str | None = "classify"
    compares_examples = True
    final_format = "hf"
    flags: tuple[str, ...] = (
        *("loss", "similarity_scale", "symmetric", "margin", "matryoshka_dims", "pooling"),
    )

    def __init__(
        self,
        tokenizer: "BertTokenizer",
        label_names: tuple[str, ...] | None = None,
        max_seq_length: int = 128,
        settings: EmbeddingConfig | None = None,
    ):
        super().__init__(tokenizer, None, max_seq_length)
        self.settings: EmbeddingConfig = settings or EmbeddingConfig()
        self.loss: str | None = None
        self._config: FinetuneConfig | None = None

    @classmethod
    def default_max_seq_length(cls, init_from: str | None) -> int:
        if init_from is None:
            return cls.max_seq_length
        settings = ModelFolder.of(init_from).config.embedding
        return (settings and settings.max_seq_length) or cls.max_seq_length

    @classmethod
    def from_config(
        cls,
        config: "FinetuneConfig",
        tokenizer: "BertTokenizer",
        label_names: tuple[str, ...] | None = None,
        allow_no_answer: bool = False,
    ) -> "Self":
        task = super().from_config(config, tokenizer)
        task._config = config
        return task

    @classmethod
    def from_settings(
        cls, settings: dict[str, Any], tokenizer: "BertTokenizer", config: "BertConfig"
    ) -> "Self":
        return cls(tokenizer, None, settings["max_seq_length"], config.embedding_settings)

    @classmethod
    def reader(
        cls, source: str, config: "ColumnConfig", labeled: bool
    ) -> "tuple[Records, Callable[[str, Record], EmbeddingExample]]":
        if is_plain_text(source, config):
            return text_records(source)
        return embedding_records(open_records(source, cls.name), config, labeled)

    @classmethod
    def examples(cls, texts: Sequence[str]) -> list[EmbeddingExample]:
        return [EmbeddingExample("", (text,)) for text in texts]

    @classmethod
    def split_groups(cls, examples: Sequence[EmbeddingExample]) -> tuple[list[Any], list[Any]]:
        return [None] * len(examples), [example.texts[0] for example in examples]

    def adapt(
        self, base: "BertConfig", examples: Mapping[str, Sequence[EmbeddingExample]]
    ) -> dict[str, Any]:
        config = self._config
        changes: dict[str, Any] = {"max_seq_length": self.max_seq_length}
        changes |= {"pooling": config.pooling} if config.pooling else {}
        self.settings = dataclasses.replace(base.embedding_settings, **changes)
        first = examples["train"][0]
        usual = "multiple_negatives_ranking" if first.label is None else "cosent"
        self.loss = config.loss or usual
        self._check_loss(examples["train"])
        _check_single_texts(base, examples)
        width = self.settings.dense_size or base.hidden_size
        if max(self._dims() or [1]) > width:
            raise UserError(
                f"matryoshka_dims must be at most {width}, the size of the embeddings; got "
                f"{config.matryoshka_dims!r}."
            )
        evaluated = examples.get("eval", examples["train"])[0]
        self.metric: str = type(self).metric if evaluated.label is None else "spearman"
        return {"embedding": self.settings}

    def _check_loss(self, examples):
        """Raises UserError if the examples or the batches do not fit the loss."""
        first, loss = examples[0], self.loss
        scored, needed = loss in _SCORED, None
        if scored != (first.label is not None):
            needed = "a score for each pair" if scored else "pairs or triplets without scores"
        elif loss == "triplet" and len(first.texts) < 3:
            needed = "a negative for each pair, in a column named negative"
        if needed:
            raise UserError(f"--loss={loss} needs {needed}; see {first.where}.")
        wrong = [e for e in examples if loss == "cosine_similarity" and abs(e.label) > 1]
        if wrong:
            raise UserError(
                f"{wrong[0].where}: --loss=cosine_similarity needs scores from -1 to 1; got "
                f"{wrong[0].label:g}. Divide the scores by their maximum, or use --loss=cosent, "
                f"which needs only their order."
            )
        alone = loss == "cosent" or (loss != "triplet" and not scored and len(first.texts) == 2)
        if alone and self._config.batch_size < 2:
            raise UserError(f"--loss={loss} compares examples, so batch_size must be at least 2.")

    def _dims(self):
        """Returns the numbers of `matryoshka_dims`, or None."""
        text = self._config.matryoshka_dims
        if text is None:
            return None
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise UserError(
                f"matryoshka_dims must be positive integers, such as 256,128,64; got {text!r}."
            )
        return list(map(int, parts))

    def config_fields(self) -> dict[str, Any]:
        return {}

    def label_summary(self, examples: Sequence[EmbeddingExample]) -> str:
        if examples[0].label is None:
            return ""
        scores = np.array([example.label for example in examples])
        return f"{scores.min():g} to {scores.max():g}, mean {scores.mean():g}"

    def encode(
        self, examples: Sequence[EmbeddingExample], class_weights: np.ndarray | None = None
    ) -> Encoded:
        first, prompt = examples[0], self.settings.prompt
        for example in examples:
            alike = len(example.texts) == len(first.texts)
            if not alike or (example.label is None) != (first.label is None):
                raise UserError(
                    f"{example.where}: all examples of a split must have the same number of texts, "
                    f"and either all or none must have a score, as {first.where} does."
                )
        texts = [prompt + text for example in examples for text in example.texts]
        rows = iter(encode_texts(self.tokenizer, texts, None, self.max_seq_length))
        numbers: dict[str, int] = {}
        items = []
        for example in examples:
            item = stack_items([next(rows) for _ in example.texts], self.tokenizer.pad_id)
            ids = [numbers.setdefault(text, len(numbers)) for text in example.texts]
            if example.label is None:
                items.append(with_labels(item, ids, np.int32))
            else:
                items.append(with_labels(item, example.label, np.float32))
        return Encoded(items)

    def losses(
        self, outputs: TensorDict, labels: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the losses and whether the predictions are correct, (B,) float32 each.

        Args:
            outputs: `embedding` (B, T, E) of the global batch.
            labels: (B, T) int32, the numbers of the texts; or (B,) float32, scores.
            weights: (B,) float32, 0 for examples that pad the batch; None: all 1.
        """
        vectors = outputs["embedding"]
        weights = tf.ones(tf.shape(vectors)[:1]) if weights is None else weights
        dims = self._dims()
        if dims is None:
            return self._losses(vectors, labels, weights)
        # The sum over the sizes; Kusupati et al. 2022, "Matryoshka Representation Learning"
        # (arXiv:2205.13147).
        parts = [embedding_losses.normalized(vectors[..., :size]) for size in dims]
        losses, right = zip(*(self._losses(x, labels, weights) for x in parts), strict=True)
        return tf.add_n(losses), right[int(np.argmax(dims))]

    def _losses(self, vectors, labels, weights):
        scale = self._config.similarity_scale
        if self.loss == "cosent":
            return embedding_losses.cosent_losses(vectors, labels, weights, scale)
        if self.loss == "cosine_similarity":
            return embedding_losses.cosine_losses(vectors, labels)
        if self.loss == "triplet":
            return embedding_losses.triplet_losses(vectors, self._config.margin)
        symmetric = self._config.symmetric
        return embedding_losses.ranking_losses(vectors, labels, weights, scale, symmetric)

    def predict(self, predictor: "Predictor", *texts: Sequence[Any]) -> list[np.ndarray]:
        return list(predictor.embed(*texts))

    def predictions(
        self, examples: Sequence[EmbeddingExample], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        """Returns a dict of `similarity`, the cosine of the first two texts, for each example.

        If the examples have no score, the dicts also have `rank`, the result of `positive_ranks`.
        """
        vectors = np.stack([output["embedding"] for output in outputs])  # (N, T, E)
        values = similarities(vectors[:, 0], vectors[:, 1], "cosine")
        rows = [{"similarity": float(value)} for value in values]
        if examples[0].label is None:
            for row, rank in zip(rows, positive_ranks(examples, vectors), strict=True):
                row["rank"] = rank
        return rows

    def scores(
        self, examples: Sequence[EmbeddingExample], predictions: Predictions
    ) -> dict[str, float]:
        if examples[0].label is not None:
            labels = np.array([example.label for example in examples])
            cosines = np.array([prediction["similarity"] for prediction in predictions])
            scores = metrics.regression_scores(labels, cosines)
            return {name: scores[name] for name in ("spearman", "pearson")}
        ranks = collections.defaultdict(dict)  # dicts, because an example may occur twice
        for example, prediction in zip(examples, predictions, strict=True):
            ranks[example.texts[0]][example.texts[1]] = prediction["rank"]
        return metrics.ranking_scores([list(of_query.values()) for of_query in ranks.values()])


def _check_single_texts(base, examples):
    """Checks splits where each text is its own positive, which only dropout makes different."""
    for split, rows in examples.items():
        if any(row.label is not None or {*row.texts} != {row.texts[0]} for row in rows):
            continue
        if split != "train":
            raise UserError(
                f"{rows[0].where}: the {split} examples are single texts, which cannot be scored. "
                f"Set --{split}_file to pairs of texts, with or without a score."
            )
        if not (base.hidden_dropout_prob or base.attention_probs_dropout_prob):
            raise UserError(
                f"{rows[0].where}: training on single texts needs dropout, but hidden_dropout_prob "
                f"and attention_probs_dropout_prob of the model are 0. Set them in its "
                f"config.json, for example to 0.1."
            )


def positive_ranks(examples: Sequence[EmbeddingExample], vectors: np.ndarray) -> list[int]:
    """Returns the rank of each example's positive by the cosine with its anchor, from 1.

    The candidates are the distinct positives and negatives of all examples; the anchor itself is no
    candidate. Of candidates with the same cosine, the first one in the examples ranks first.

    Args:
        vectors: (N, T, E), embeddings of the texts of N examples.
    """
    places: dict[str, tuple[int, int]] = {}
    for i, example in enumerate(examples):
        for j, text in enumerate(example.texts[1:], 1):
            places.setdefault(text, (i, j))
    numbers = {text: number for number, text in enumerate(places)}
    vectors = l2_normalize(vectors.reshape(-1, vectors.shape[-1])).reshape(vectors.shape)
    candidates = vectors[tuple(np.array(list(places.values())).T)]  # (M, E)
    ranks, rows = [], max(1, _CHUNK // len(places))
    for begin in range(0, len(examples), rows):
        part = examples[begin : begin + rows]
        cosines = vectors[begin : begin + rows, 0] @ candidates.T
        for example, row in zip(part, cosines, strict=True):
            own = numbers[example.texts[1]]
            if (anchor := numbers.get(example.texts[0], own)) != own:
                row[anchor] = -np.inf
            better = np.count_nonzero(row > row[own]) + np.count_nonzero(row[:own] == row[own])
            ranks.append(1 + int(better))
    return ranks
