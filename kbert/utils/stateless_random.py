"""Stateless uniform random numbers: a pure function of (seed, stream, index)."""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z):
    """The output function of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, stream: int, index: np.ndarray, count: int) -> np.ndarray:
    """Returns uniform random numbers for each index.

    Args:
        seed: seed of the run.
        stream: number of the stream; each purpose has its own.
        index: (B,) ints.
        count: J, numbers per index.

    Returns:
        (B, J) float64 in [0, 1). Row i depends only on (seed, stream, index[i]).
    """
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2**64
        key = _mix(np.uint64(seed % (1 << 64)) + _GAMMA * np.uint64(stream + 1))
        keys = _mix(key + _GAMMA * np.asarray(index).astype(np.uint64))  # (B,)
        states = keys[:, None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64)  # (B, J)
        return (_mix(states) >> np.uint64(11)) * 2.0**-53
