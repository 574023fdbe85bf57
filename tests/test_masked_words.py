"""The masked words that show what a pretraining run learned."""

import types

import numpy as np
import pytest

from kbert.train.masked_words import choose_sentences, middle_word, report_lines


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("the cat sat on the mat .", "on"),
        ("un ##believ ##able , said the old man .", "said"),  # no part of a word
        ("1 2 , cat ##s .", ","),  # no whole word: any token
        ("un ##believ ##able man", "##believ"),  # the last word may be cut off
        ("我 爱 北 京 。", "北"),
    ],
)
def test_the_masked_word_is_the_whole_word_closest_to_the_middle(sentence, word):
    tokens = sentence.split()
    assert tokens[middle_word(tokens)] == word


def corpus_of(*shards):
    """Shards of sentences with these lengths; the ids count up from 0 in the whole corpus."""
    sizes = np.cumsum([0, *map(sum, shards)])
    parts = [
        types.SimpleNamespace(ids=np.arange(sum(lengths)), sentences=np.cumsum([0, *lengths[:-1]]))
        for lengths in shards
    ]
    return types.SimpleNamespace(
        shards=parts, shard_starts=sizes, read=lambda first, stop: np.arange(first, stop)
    )


def chosen(*shards, longest=16):
    return [(ids[0], len(ids)) for ids in choose_sentences(corpus_of(*shards), longest)]


def test_sentences_are_spread_over_the_corpus():
    assert chosen([9] * 6, [9] * 4) == [(9, 9), (27, 9), (45, 9), (63, 9), (81, 9)]
    assert chosen([3, 9] * 5) == [(3, 9), (15, 9), (27, 9), (39, 9), (51, 9)]  # 3 is too short


def test_long_sentences_are_cut_where_there_are_no_others():
    assert chosen([20] * 5, longest=16) == [(0, 16), (20, 16), (40, 16), (60, 16), (80, 16)]
    assert chosen([2, 1, 5]) == [(0, 2), (3, 5)]
    assert chosen([1]) == []


def test_report():
    before = {"mlm_loss": 8.349, "predictions": [["a [MASK] sat", "cat", 2017, ["##x", "of"]]]}
    results = {"eval_mlm_loss": 5.806, "eval_unigram_entropy": 6.331}
    after = [["a [MASK] sat", "cat", 2, ["dog", "cat"]]]
    assert list(report_lines(before, results, after)) == [
        "held-out MLM loss: 8.35 before training, 5.81 after it (unigram entropy 6.33). "
        "Predictions before -> after:",
        "  a [MASK] sat",
        "      ##x / of -> dog / cat    (cat: rank 2,017 -> 2)",
    ]
