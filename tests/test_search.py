"""Exact search by embeddings, against NumPy."""

import keras
import numpy as np
import pytest

import kbert
from kbert import BertConfig, Predictor
from kbert.errors import UserError
from kbert.tasks.outputs import similarities, similarity_matrix
from kbert.tokenizer.vocab import SPECIAL_TOKENS

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "red", "blue"]


def test_search():
    keras.utils.set_random_seed(0)
    bert = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    tokenizer = kbert.BertTokenizer([*SPECIAL_TOKENS, *WORDS])
    predictor = Predictor(kbert.BertModel(bert), tokenizer, backend="keras", batch_size=1)
    corpus = [f"{a} {b}" for a in WORDS for b in WORDS[:5]]
    vectors, others = predictor.embed(["a cat", "dog ran"]), predictor.embed(corpus)
    expected = np.argsort(-(vectors @ others.T), axis=1)[:, :4]
    found = predictor.search(["a cat", "dog ran"], iter(corpus), top_k=4)
    assert [[row["index"] for row in rows] for rows in found] == expected.tolist()
    assert found[0][0]["text"] == corpus[expected[0, 0]]
    assert found[1][3]["similarity"] == pytest.approx(vectors[1] @ others[expected[1, 3]])
    assert predictor.search("a cat", [], top_k=3) == [[]]
    with pytest.raises(UserError, match=r"top_k must be at least 1; got 0"):
        predictor.search("a cat", ["a"], top_k=0)
    with pytest.raises(UserError, match=r"the corpus must be a list of texts; got the str 'a dog'"):
        predictor.search("a cat", "a dog")


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_matrices_of_similarities(kind):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 6)), rng.normal(size=(3, 6))
    expected = [[similarities(x[None], y[None], kind)[0] for y in b] for x in a]
    np.testing.assert_allclose(similarity_matrix(a, b, kind), expected, rtol=1e-5)
