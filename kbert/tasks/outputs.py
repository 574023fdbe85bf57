"""Functions that compute probabilities, embeddings, similarities and the logits of [MASK]."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.config import POOLINGS
from kbert.model.task_heads import EmbeddingHead

if TYPE_CHECKING:
    from kbert.model.models import BertForEmbedding, BertForMaskedLM, BertModel
    from kbert.tokenizer.tokenizer import BertTokenizer

TensorDict = dict[str, tf.Tensor]
Outputs = Iterable[dict[str, np.ndarray]]  # of a BatchRunner: a dict for each item
Predictions = Sequence[dict[str, Any]]

MAX_MASKS = 16  # maximum number of [MASK] tokens that are predicted in a text


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def embeddings(model: "BertForEmbedding | BertModel", features: TensorDict) -> TensorDict:
    """Returns the embeddings of texts before normalization: dict of pooling -> (B, E) float32."""
    head = getattr(model, "embedding", None) or EmbeddingHead(model.config)
    x = getattr(model, "bert", model)(features, training=False)["last_hidden_state"]
    mask = features["attention_mask"]
    return {name: head(x, mask, pooling=name, normalize=False) for name in POOLINGS}


def similarities(vectors: np.ndarray, others: np.ndarray, kind: str) -> np.ndarray:
    """Returns the similarity of each of N pairs of embeddings: (N, E), (N, E) -> (N,).

    `kind` is as `similarity` in `EmbeddingConfig`.
    """
    if kind == "euclidean":
        return -np.linalg.norm(vectors - others, axis=1)
    if kind == "manhattan":
        return -np.abs(vectors - others).sum(axis=1)
    if kind == "cosine":
        vectors, others = l2_normalize(vectors), l2_normalize(others)
    return (vectors * others).sum(axis=1)


def similarity_matrix(vectors: np.ndarray, others: np.ndarray, kind: str) -> np.ndarray:
    """Returns the similarities of all pairs of embeddings, (Q, M).

    Args:
        vectors: (Q, E).
        others: (M, E).
        kind: as for `similarities`.
    """
    if kind in ("euclidean", "manhattan"):
        return np.stack([similarities(vector[None], others, kind) for vector in vectors])
    if kind == "cosine":
        vectors, others = l2_normalize(vectors), l2_normalize(others)
    return vectors @ others.T


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors, (N, E), to length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def masked_logits(
    model: "BertForMaskedLM", features: TensorDict, tokenizer: "BertTokenizer"
) -> TensorDict:
    """Returns `logits`, (B, M, V) float32, at the first `MAX_MASKS` [MASK] tokens of each text.

    M is `MAX_MASKS`, or L if that is smaller. If a text has fewer [MASK] tokens, the remaining
    slots are at other tokens. V is the size of the vocabulary, even if the model's embedding table
    is larger.
    """
    masked = tf.equal(features["input_ids"], tokenizer.mask_id)
    first = tf.argsort(tf.cast(masked, tf.int32), direction="DESCENDING", stable=True)
    outputs = model({**features, "masked_positions": first[:, :MAX_MASKS]}, training=False)
    return {"logits": outputs["logits"][..., : tokenizer.vocab_size]}
