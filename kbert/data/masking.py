"""BERT's masking for masked language modeling (Devlin et al. 2019, section 3.1), in batches."""

import numpy as np

MASKED_SHARE, KEPT_SHARE = 0.8, 0.1  # the remaining 10 % become random tokens


def prediction_counts(lengths: np.ndarray, mask_rate: float, max_predictions: int) -> np.ndarray:
    """Returns the number of tokens to predict in each row, as in google-research/bert.

    Args:
        lengths: (B,) number of tokens in each row, including [CLS] and [SEP].
        mask_rate: fraction of the tokens to predict.
        max_predictions: M.

    Returns:
        (B,) int64 in [1, M].
    """
    return np.clip(np.rint(lengths * mask_rate).astype(np.int64), 1, max_predictions)


def choose_tokens(maskable: np.ndarray, counts: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Chooses `counts[i]` maskable tokens of row i at random; returns (B, L) bool.

    Args:
        maskable: (B, L) bool, whether each token may be chosen.
        counts: (B,) int64; a row with fewer maskable tokens has all of them chosen.
        draws: (B, L) uniform random numbers in [0, 1).
    """
    order = np.argsort(np.where(maskable, draws, 2.0), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
    return (ranks < counts[:, None]) & maskable


def choose_words(
    maskable: np.ndarray, continues: np.ndarray, counts: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """Chooses the tokens to predict with whole-word masking; returns (B, L) bool.

    As in `create_pretraining_data.py`, words are visited in random order, and a word that would
    exceed the count is skipped, so fewer than `counts[i]` tokens of row i may be chosen.

    Args:
        maskable: (B, L) bool, whether each token may be chosen.
        continues: (B, L) bool, True if the token continues a word.
        counts: (B,) int64, maximum number of tokens to choose in each row.
        draws: (B, L) uniform random numbers in [0, 1).
    """
    B, L = maskable.shape
    starts = maskable & ~(continues & np.pad(maskable[:, :-1], ((0, 0), (1, 0))))
    words = np.cumsum(starts, axis=1) - 1  # (B, L) number of the word; all -1 in a row without one
    sizes = np.zeros((B, L), np.int64)
    rows = np.broadcast_to(np.arange(B)[:, None], (B, L))
    np.add.at(sizes, (rows[maskable], words[maskable]), 1)  # (B, words) tokens of each word
    order = np.argsort(np.where(sizes > 0, draws, 2.0), axis=1)
    chosen = np.zeros((B, L), bool)  # (B, words)
    room = counts.copy()
    for word in order[:, : int((sizes > 0).sum(axis=1).max(initial=0))].T:
        size = sizes[np.arange(B), word]
        fits = (size > 0) & (size <= room)
        chosen[np.arange(B), word] = fits
        room -= np.where(fits, size, 0)
        if not room.any():
            break
    return np.take_along_axis(chosen, np.maximum(words, 0), axis=1) & maskable


def mask_tokens(
    input_ids: np.ndarray,
    chosen: np.ndarray,
    max_predictions: int,
    draws: np.ndarray,
    mask_id: int,
    vocab_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Replaces chosen tokens with [MASK] (80 %) or random tokens (10 %), or keeps them (10 %).

    Args:
        input_ids: (B, L) int32.
        chosen: (B, L) bool, whether each token was chosen; at most M tokens per row.
        max_predictions: M.
        draws: (B, 2 * M) uniform random numbers in [0, 1).
        mask_id: id of [MASK].
        vocab_size: V.

    Returns:
        input_ids (B, L) with the replacements, masked_positions (B, M) in ascending order,
        masked_ids (B, M) and masked_weights (B, M), as in `kbert.features`.
    """
    B, L = input_ids.shape
    M = max_predictions
    # A stable sort of "not chosen" puts the chosen positions first, in their order.
    positions = np.argsort(~chosen, axis=1, kind="stable")[:, : min(M, L)]
    positions = np.pad(positions, ((0, 0), (0, M - positions.shape[1])))
    weights = np.arange(M) < chosen.sum(axis=1)[:, None]  # (B, M)
    positions = np.where(weights, positions, 0)
    originals = np.take_along_axis(input_ids, positions, axis=1)
    kind, token = draws[:, :M], draws[:, M:]
    replaced = np.where(kind < MASKED_SHARE, mask_id, (token * vocab_size).astype(input_ids.dtype))
    kept = (kind >= MASKED_SHARE) & (kind < MASKED_SHARE + KEPT_SHARE)
    replaced = np.where(kept, originals, replaced)
    masked = input_ids.copy()
    rows = np.broadcast_to(np.arange(B)[:, None], (B, M))
    masked[rows[weights], positions[weights]] = replaced[weights]
    return (
        masked,
        positions.astype(np.int32),
        np.where(weights, originals, 0).astype(np.int32),
        weights.astype(np.float32),
    )
