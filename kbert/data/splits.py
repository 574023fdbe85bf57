"""Splits labeled examples as a pure function of a seed and their positions, classes and groups."""

import collections
from collections.abc import Hashable, Sequence

import numpy as np

from kbert.utils.stateless_random import uniform

_STREAM_SPLIT = 7  # of kbert.utils.stateless_random; batches use 0 to 6 and 8


def split_keys(
    seed: int, classes: Sequence[Hashable], groups: Sequence[Hashable] | None = None
) -> np.ndarray:
    """Returns random numbers in [0, 1) for examples, evenly spaced within each class.

    An interval of length f therefore selects a fraction f of each class, give or take one example
    or, with `groups`, one group.

    Args:
        seed: seed of the run.
        classes: class of each of N examples.
        groups: group of each example, such as the context that several questions share; a group is
            never split, and its first example sets its class. None: each example is a group.

    Returns:
        (N,) float64; the examples of a group have equal numbers.
    """
    first = {}  # group -> position of its first example, which represents the group
    groups = range(len(classes)) if groups is None else groups
    heads = np.array([first.setdefault(group, i) for i, group in enumerate(groups)])
    draws = uniform(seed, _STREAM_SPLIT, np.arange(len(classes)), 2)
    members = collections.defaultdict(list)
    for i in sorted(first.values(), key=lambda i: draws[i, 0]):
        members[classes[i]].append(i)
    keys = np.zeros(len(classes))
    for positions in members.values():
        shift = draws[min(positions), 1]
        keys[positions] = (np.arange(len(positions)) + shift) / len(positions)
    return keys[heads]
