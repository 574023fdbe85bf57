"""Masking against a plain reading of create_pretraining_data.py."""

import numpy as np
import pytest

from kbert.data.masking import choose_tokens, choose_words, mask_tokens, prediction_counts
from kbert.utils.stateless_random import uniform

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("rate", [0.15, 0.4, 0.0625, 0.99])
def test_counts_are_those_of_google(rate):
    lengths = np.arange(5, 513)
    for limit in (20, 77, 600):
        expected = [min(limit, max(1, round(n * rate))) for n in lengths.tolist()]
        assert prediction_counts(lengths, rate, limit).tolist() == expected


def batch(B=4, L=19, seed=0):
    """Maskable tokens of rows of different lengths, with [CLS], two [SEP] and padding."""
    rng = np.random.default_rng(seed)
    maskable = np.zeros((B, L), bool)
    for row in maskable:
        end = rng.integers(5, L)
        row[1:end] = True
        row[rng.integers(2, end - 1)] = False
    return maskable, rng.random((B, L)), rng.integers(1, 9, B)


def test_chosen_tokens_are_the_maskable_ones_with_the_lowest_draws():
    for seed in range(50):
        maskable, draws, counts = batch(seed=seed)
        chosen = choose_tokens(maskable, counts, draws)
        for row in range(len(maskable)):
            places = sorted(np.flatnonzero(maskable[row]), key=lambda i: draws[row, i])
            assert set(np.flatnonzero(chosen[row])) == set(places[: counts[row]])


def test_all_tokens_are_chosen_alike():
    maskable, _, _ = batch()
    rounds = 4000
    total = np.zeros(maskable.shape)
    for i in range(rounds):
        draws = uniform(1, 2, np.arange(4) + 4 * i, 19)
        total += choose_tokens(maskable, np.array([1, 2, 3, 1]), draws)
    expected = maskable * np.array([[1], [2], [3], [1]]) / maskable.sum(axis=1, keepdims=True)
    # 4.5 standard errors of a share of at most a half
    np.testing.assert_allclose(total / rounds, expected, atol=4.5 * 0.5 / np.sqrt(rounds))


def choose_words_of_google(words, order, count):
    """create_masked_lm_predictions with do_whole_word_mask, for words in a given order."""
    chosen = []
    for word in order:
        if len(chosen) >= count:
            break
        if len(chosen) + len(words[word]) > count:
            continue
        chosen += words[word]
    return set(chosen)


def test_whole_words_are_chosen_as_google_chooses_them():
    for seed in range(60):
        maskable, draws, counts = batch(seed=seed)
        continues = np.random.default_rng(seed).random(maskable.shape) < 0.45
        chosen = choose_words(maskable, continues, counts, draws)
        for row in range(len(maskable)):
            words = []
            for i in np.flatnonzero(maskable[row]):
                if words and continues[row, i] and maskable[row, i - 1]:
                    words[-1].append(i)
                else:
                    words.append([i])
            order = sorted(range(len(words)), key=lambda w: draws[row, w])
            expected = choose_words_of_google(words, order, counts[row])
            assert set(np.flatnonzero(chosen[row])) == expected


def test_whole_words_with_nothing_to_choose():
    nothing = np.zeros((2, 7), bool)
    assert not choose_words(nothing, nothing, np.array([1, 1]), np.zeros((2, 7))).any()


def masked(fate, token=0.5, B=3, L=11, M=5, V=40):
    rng = np.random.default_rng(0)
    ids = rng.integers(10, V, (B, L)).astype(np.int32)
    chosen = np.zeros((B, L), bool)
    chosen[0, [2, 4, 9]] = chosen[1, 7] = True
    draws = np.concatenate([np.full((B, M), fate), np.full((B, M), token)], axis=1)
    return ids, chosen, mask_tokens(ids, chosen, M, draws, mask_id=4, vocab_size=V)


@pytest.mark.parametrize(
    ("fate", "token", "expected"),
    [
        *((0.0, 0.5, 4), (0.799, 0.5, 4)),  # [MASK]
        *((0.8, 0.5, None), (0.899, 0.5, None)),  # as it was
        *((0.9, 0.5, 20), (0.99, 0.0, 0), (0.99, 0.999, 39)),  # any entry
    ],
)
def test_what_becomes_of_a_chosen_token(fate, token, expected):
    ids, chosen, (found, positions, originals, weights) = masked(fate, token)
    np.testing.assert_array_equal(found[~chosen], ids[~chosen])
    if expected is None:
        np.testing.assert_array_equal(found, ids)
    else:
        assert (found[chosen] == expected).all()
    assert positions.tolist() == [[2, 4, 9, 0, 0], [7, 0, 0, 0, 0], [0] * 5]
    assert weights.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0] * 5]
    # The labels are the original ids, whatever stands there now; padding slots hold 0.
    expected = [[*ids[0, [2, 4, 9]], 0, 0], [ids[1, 7], 0, 0, 0, 0], [0] * 5]
    np.testing.assert_array_equal(originals, expected)
    assert [a.dtype for a in (found, positions, originals, weights)] == [
        *("int32", "int32", "int32", "float32")
    ]


def test_eighty_ten_ten():
    """0.8 / 0.1 / 0.1 of 40,000 chosen tokens; tolerance 4 standard errors."""
    B, L, M, V = 2000, 24, 20, 30522
    ids = np.full((B, L), V - 1, np.int32)
    chosen = np.tile(np.arange(L) < M, (B, 1))
    draws = uniform(7, 3, np.arange(B), 2 * M)
    found = mask_tokens(ids, chosen, M, draws, mask_id=103, vocab_size=V)[0][chosen]
    shares = [(found == 103).mean(), (found == V - 1).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=4 * 0.4 / np.sqrt(B * M))
    random = found[(found != 103) & (found != V - 1)]
    assert abs(random.mean() / V - 0.5) < 4 * 0.289 / np.sqrt(len(random))


def test_fewer_slots_than_positions_and_more():
    ids = np.arange(6, dtype=np.int32)[None]
    chosen = np.array([[False, True, True, False, False, False]])
    for M in (2, 9):
        found = mask_tokens(ids, chosen, M, np.zeros((1, 2 * M)), mask_id=4, vocab_size=6)
        assert found[1].shape == (1, M) and found[1][0, :2].tolist() == [1, 2]


@pytest.mark.parametrize(("rate", "M"), [(0.15, 20), (0.15, 77), (0.4, 300)])
def test_rows_of_every_length(rate, M):
    """From 5 to 512 tokens, of which [CLS] and two [SEP] are not to be chosen."""
    lengths = np.arange(5, 513)
    B, L = len(lengths), 512
    places = np.arange(L)
    ids = np.where(places < lengths[:, None], 1000 + places, 0).astype(np.int32)
    special = (places == 0) | (places == lengths[:, None] // 2) | (places == lengths[:, None] - 1)
    maskable = (places < lengths[:, None]) & ~special
    counts = prediction_counts(lengths, rate, M)
    chosen = choose_tokens(maskable, counts, uniform(5, 2, np.arange(B), L))
    draws = uniform(5, 3, np.arange(B), 2 * M)
    found, positions, originals, weights = mask_tokens(ids, chosen, M, draws, 4, 30522)
    for row, length in enumerate(lengths.tolist()):
        count = min(M, max(1, round(length * rate)))
        assert weights[row].tolist() == [1] * count + [0] * (M - count)
        here = positions[row, :count].tolist()
        assert here == sorted(set(here)) and not positions[row, count:].any()
        assert not {0, length // 2} & set(here) and here[-1] < length - 1
        assert originals[row].tolist() == [1000 + i for i in here] + [0] * (M - count)
        rest = np.delete(np.arange(L), here)
        np.testing.assert_array_equal(found[row, rest], ids[row, rest])


def test_more_wanted_than_there_are_tokens():
    maskable = np.array([[False, True, False, True, False]])
    counts, draws = np.array([5]), np.array([[0.1, 0.9, 0.2, 0.3, 0.5]])
    for chosen in (
        choose_tokens(maskable, counts, draws),
        choose_words(maskable, np.zeros_like(maskable), counts, draws),
    ):
        assert chosen.tolist() == maskable.tolist()
