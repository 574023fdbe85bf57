"""Packs several texts into each row, and computes the features that separate them.

The texts of a row do not attend to each other (`sequence_ids`), and positions restart in each text
(`position_ids`), so a text has the same outputs in a packed row as in a row of its own.
Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination",
arXiv:2107.02027, longest-pack-first histogram packing.
"""

import numpy as np


def pack(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Distributes texts over few rows: the longest first, each to the fullest row with room for it.

    Texts of equal length are placed together, so that the Python loop takes few iterations even for
    millions of texts.

    Args:
        lengths: (N,) int, tokens of each text with its special tokens, 1 to `row_length`.
        row_length: L.

    Returns:
        order (N,) int64, the numbers of the texts, row by row, and row_starts (R + 1,) int64: row r
        holds order[row_starts[r] : row_starts[r + 1]]. Texts of equal length keep their order.
    """
    counts = np.bincount(lengths, minlength=row_length + 1)
    by_length = np.argsort(lengths, kind="stable")
    used = np.cumsum(counts) - counts  # place in `by_length` of the next text of each length
    order, sizes = [np.empty(0, np.int64)], [np.zeros(1, np.int64)]
    for contents, rows in _best_fit(counts.tolist()):
        block = np.empty((rows, len(contents)), np.int64)
        for column, length in enumerate(contents):
            block[:, column] = by_length[used[length] : used[length] + rows]
            used[length] += rows
        order.append(block.ravel())
        sizes.append(np.full(rows, len(contents)))
    return np.concatenate(order), np.cumsum(np.concatenate(sizes))


def _best_fit(counts):
    """Packs a histogram; returns a list of (tuple of the lengths in a row, number of such rows).

    Args:
        counts: list of L + 1 ints, the number of texts of each length.
    """
    L = len(counts) - 1
    packed = [[] for _ in range(L + 1)]  # [number of free positions] -> [(lengths, rows), ...]
    for length in range(L, 0, -1):
        left, room = counts[length], length
        while left:
            while room < L and not packed[room]:
                room += 1
            lengths, rows = packed[room].pop() if room < L else ((), left)  # or new rows
            copies = min(room // length, left)
            filled = min(rows, left // copies)
            if lengths and filled < rows:
                packed[room].append((lengths, rows - filled))
            packed[room - copies * length].append((lengths + (length,) * copies, filled))
            left -= filled * copies
    return [content for contents in packed for content in contents]


def lay_out(
    lengths: np.ndarray, counts: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the positions of N texts that fill each of B rows from the left, without gaps.

    Args:
        lengths: (N,) int, tokens of each text with its special tokens, row by row.
        counts: (B,) int, number of texts in each row, which must fit into it.
        row_length: L.

    Returns:
        sequence_ids (B, L) int32: 1, 2, ... for the first, second, ... text of the row;
        position_ids (B, L) int32, counted from 0 in each text; both are 0 for padding; and (N,)
        int64, index of the first token of each text in the flattened rows, (B * L,).
    """
    B, L = len(counts), row_length
    ends = np.concatenate([[0], np.cumsum(lengths)])
    before = np.cumsum(counts) - counts  # (B,) number of texts in earlier rows
    shift = np.repeat(np.arange(B) * L - ends[before], counts)  # (N,) padding before each text
    first = ends[:-1] + shift
    places = ranges(first, lengths)
    sequence_ids, position_ids = np.zeros((2, B * L), np.int32)
    sequence_ids[places] = np.repeat(ranges(np.ones_like(counts), counts), lengths)
    position_ids[places] = ranges(np.zeros_like(lengths), lengths)
    return sequence_ids.reshape(B, L), position_ids.reshape(B, L), first


def ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the concatenated ranges [begins[i], begins[i] + counts[i]), (sum(counts),) int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(begins - before, counts) + np.arange(counts.sum())
