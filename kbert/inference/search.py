"""Exact search for the texts with the most similar embeddings."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kbert.errors import UserError
from kbert.tasks.outputs import similarity_matrix

_QUERIES = 1024  # number of queries to compare with a part of the corpus at once


def nearest_texts(
    vectors: np.ndarray,
    corpus: Iterable[str],
    embed: Callable[[list[str]], np.ndarray],
    top_k: int,
    similarity: str,
    part: int,
) -> list[list[dict[str, Any]]]:
    """Returns the results of `Predictor.search`.

    Args:
        vectors: (Q, E), embeddings of the queries.
        corpus: texts to search in; they are read only once.
        embed: function from a list of M texts to their embeddings, (M, E).
        top_k: number of texts to return per query.
        similarity: field `similarity` of `EmbeddingConfig`.
        part: number of texts to embed and compare at once.

    Raises:
        UserError: top_k is below 1, or the corpus is a single string.
    """
    if top_k < 1:
        raise UserError(f"top_k must be at least 1; got {top_k}.")
    if isinstance(corpus, str):
        raise UserError(f"the corpus must be a list of texts; got the str {corpus[:60]!r}.")
    best: list[list[tuple[float, int, str]]] = [[] for _ in vectors]
    texts, done = iter(corpus), 0
    while some := list(itertools.islice(texts, part)):
        others = embed(some)
        for begin in range(0, len(vectors), _QUERIES):
            rows = similarity_matrix(vectors[begin : begin + _QUERIES], others, similarity)
            for number, row in enumerate(rows, begin):
                order = np.argsort(-row, kind="stable")[:top_k].tolist()
                candidates = best[number] + [(float(row[i]), done + i, some[i]) for i in order]
                best[number] = sorted(candidates, key=lambda entry: -entry[0])[:top_k]
        done += len(some)
    return [
        [{"index": i, "text": text, "similarity": value} for value, i, text in nearest]
        for nearest in best
    ]
