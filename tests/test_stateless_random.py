"""Random numbers that are a function of (seed, stream, index)."""

import numpy as np

from kbert.utils.stateless_random import uniform

GAMMA = 0x9E3779B97F4A7C15


def mix(z):
    """The output function of SplitMix64 in plain integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def splitmix64(state, count):
    return [mix((state + GAMMA * i) % 2**64) for i in range(1, count + 1)]


def test_plain_splitmix64_gives_the_published_numbers():
    """Of java.util.SplittableRandom's algorithm from the state 1234567 (rosettacode.org)."""
    assert splitmix64(1234567, 5) == [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    ]


def test_a_row_is_a_stream_of_splitmix64():
    for seed, stream, index in ((0, 0, 0), (3, 1, 5), (2**31 - 1, 3, 2**62), (7, 2, 10**15)):
        key = mix((seed + GAMMA * (stream + 1)) % 2**64)
        state = mix((key + GAMMA * index) % 2**64)
        expected = [(z >> 11) / 2**53 for z in splitmix64(state, 6)]
        assert uniform(seed, stream, [index], 6).tolist() == [expected]


def test_draws_are_a_function_of_seed_stream_and_index():
    draws = uniform(3, 1, np.array([5, 9, 5]), 4)
    assert draws.shape == (3, 4) and draws.dtype == np.float64
    np.testing.assert_array_equal(draws[0], draws[2])
    np.testing.assert_array_equal(draws[1:2], uniform(3, 1, [9], 4))
    np.testing.assert_array_equal(draws[:, :2], uniform(3, 1, [5, 9, 5], 2))
    for other in (uniform(4, 1, [5], 4), uniform(3, 2, [5], 4), uniform(3, 1, [6], 4)):
        assert not np.isin(other, draws[0]).any()


def test_draws_are_uniform_and_independent():
    draws = uniform(0, 0, np.arange(2000), 50)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    chi_squared = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_squared < 43.8  # 99.9 % of the distribution with 19 degrees of freedom
    rows = draws - draws.mean()
    for a, b in ((rows[:-1], rows[1:]), (rows[:, :-1], rows[:, 1:])):
        assert abs((a * b).mean() / rows.var()) < 0.011  # 3.3 standard errors of 98,000 pairs
