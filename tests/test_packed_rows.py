"""Rows of several texts: who shares a row, and where its tokens stand."""

import collections
import itertools

import numpy as np
import pytest

from kbert.data.packed_rows import lay_out, pack

L = 16


def rows_of(lengths, row_length=L):
    order, starts = pack(np.array(lengths, np.int64), row_length)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    rows = [order[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert all(0 < sum(lengths[i] for i in row) <= row_length for row in rows)
    return rows


def best_fit_decreasing(lengths, row_length):
    """The textbook's algorithm, one text after the other: the numbers of rows by their contents."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= row_length]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return collections.Counter(map(sum, rows))


def test_a_few_texts_as_literals():
    # 10 + 6, 9 + 7, 5 + 5 + 5, and 5 alone; texts of the same length in their order
    rows = rows_of([5, 10, 5, 7, 6, 5, 9, 5])
    assert sorted(map(sorted, rows)) == [[0, 2, 5], [1, 4], [3, 6], [7]]
    assert rows_of([16, 16]) == [[0], [1]] and rows_of([]) == [] and rows_of([3]) == [[0]]


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_as_full_as_those_of_the_textbook(seed):
    rng = np.random.default_rng(seed)
    row_length = int(rng.integers(3, 40))
    lengths = rng.integers(1, row_length + 1, rng.integers(1, 200)).tolist()
    rows = rows_of(lengths, row_length)
    found = collections.Counter(sum(lengths[i] for i in row) for row in rows)
    assert found == best_fit_decreasing(lengths, row_length)


def test_many_short_texts_leave_almost_no_padding():
    """Of 100,000 lengths as of log-normal documents: 0.1 % of the positions."""
    lengths = np.random.default_rng(0).lognormal(3.5, 0.7, 100_000).astype(int).clip(3, 128)
    _, starts = pack(lengths, 128)
    assert lengths.sum() / (128 * (len(starts) - 1)) > 0.998


def test_a_layout_as_literals():
    sequence_ids, position_ids, first = lay_out(np.array([3, 2, 5, 1]), np.array([2, 0, 1, 1]), 6)
    assert sequence_ids.tolist() == [
        [1, 1, 1, 2, 2, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 0, 0, 0, 0, 0],
    ]
    assert position_ids.tolist() == [
        [0, 1, 2, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 2, 3, 4, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert first.tolist() == [0, 3, 12, 18]
    assert sequence_ids.dtype == position_ids.dtype == np.int32
