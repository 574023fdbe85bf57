"""NSP pairs: what they are made of, how often, and from where."""

import collections

import numpy as np
import pytest

from kbert.data.document_windows import DocumentWindows
from kbert.data.sentence_pairs import PairSampler
from kbert.errors import UserError

Pair = collections.namedtuple("Pair", "a b is_next")


class FakeCorpus:
    """Documents of given sizes in two shards; token i of the corpus has the id i."""

    def __init__(self, sizes, sentence=7, seed=0):
        rng = np.random.default_rng(seed)
        self.document_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.tokens = int(self.document_starts[-1])
        middle = self.document_starts[len(sizes) // 2]
        self.shard_starts = np.array([0, middle, self.tokens])
        self.sentences = []
        for start, end in zip(self.document_starts, self.document_starts[1:], strict=False):
            place = start
            while place < end:
                self.sentences.append(place)
                place += rng.integers(1, 2 * sentence)
        self.sentences = np.array(self.sentences)
        self.shards = []
        for a, b in zip(self.shard_starts, self.shard_starts[1:], strict=False):
            inside = self.sentences[(self.sentences >= a) & (self.sentences < b)] - a
            self.shards.append(type("Shard", (), {"sentences": inside}))


SIZES = [1, 2, 3, 9, 10, 11, 30, 97, 40, 0, 5, 1, 64, 213, 17, 20, 21, 22]
T = 20


def epoch_of_pairs(corpus, short_seq_prob, epoch=0, seed=0, length=T):
    sampler = PairSampler(corpus, length + 3, short_seq_prob, seed)
    count = sampler.count
    index = epoch * count + np.arange(count)
    return cut(sampler, index, np.full(count, epoch), np.arange(count))


def cut(sampler, index, epoch, slots):
    """A list of Pair."""
    rows = zip(*(part.tolist() for part in sampler.cut(index, epoch, slots)), strict=True)
    return [Pair(tuple(a), tuple(b), is_next) for a, b, is_next in rows]


def document_of(corpus, place):
    return int(np.searchsorted(corpus.document_starts, place, side="right")) - 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sentence", [2, 7, 60])
def test_windows_cover_every_document_of_two_tokens_in_every_epoch(sentence, seed):
    corpus = FakeCorpus(SIZES, sentence)
    for epoch in range(4):
        seen = np.zeros(corpus.tokens, bool)
        for pair in epoch_of_pairs(corpus, 0.0, epoch, seed):
            end = corpus.document_starts[document_of(corpus, pair.a[0]) + 1]
            seen[pair.a[0] : min(pair.a[0] + T, end)] = True
        for start, size in zip(corpus.document_starts, SIZES, strict=False):
            assert seen[start : start + size].all() == (size != 1), (size, epoch)


@pytest.mark.parametrize("seed", range(12))
def test_random_corpora(seed):
    """Any sizes of documents, sentences and windows, the smallest window of 2 tokens included."""
    rng = np.random.default_rng(seed)
    sizes = [*rng.choice([0, 1, 2, 3, 7, 19, 20, 21, 50, 200], 12).tolist(), 2, 1]
    corpus = FakeCorpus(sizes, int(rng.integers(1, 40)), seed)
    length = [2, 3, 5, 8, 20, 41][seed % 6]
    for epoch in range(3):
        seen = np.zeros(corpus.tokens, bool)
        for pair in epoch_of_pairs(corpus, 0.0, epoch, seed, length):
            (a, a_end), (b, b_end) = pair.a, pair.b
            first, second = document_of(corpus, a), document_of(corpus, b)
            assert a < a_end and b < b_end and a_end - a + b_end - b <= length
            assert document_of(corpus, a_end - 1) == first
            assert document_of(corpus, b_end - 1) == second
            assert (b == a_end) if pair.is_next else (first != second)
            seen[a : min(a + length, corpus.document_starts[first + 1])] = True
        for start, size in zip(corpus.document_starts, sizes, strict=False):
            assert seen[start : start + size].all() == (size != 1), (size, epoch)


def test_pairs_keep_to_their_documents_and_lengths():
    corpus = FakeCorpus(SIZES)
    for epoch in range(20):
        for pair in epoch_of_pairs(corpus, 0.3, epoch):
            (a, a_end), (b, b_end) = pair.a, pair.b
            assert a < a_end and b < b_end and a_end - a + b_end - b <= T
            first, second = document_of(corpus, a), document_of(corpus, b)
            assert document_of(corpus, a_end - 1) == first
            assert document_of(corpus, b_end - 1) == second
            if pair.is_next:
                assert b == a_end
            else:
                assert first != second


def test_half_of_the_pairs_follow_and_no_window_tells_which():
    """Of each kind of window - long, short, of one sentence - half; 4 standard errors."""
    corpus = FakeCorpus(SIZES)
    is_next = np.array(
        [[pair.is_next for pair in epoch_of_pairs(corpus, 0.1, epoch)] for epoch in range(600)]
    )
    np.testing.assert_allclose(is_next.mean(axis=0), 0.5, atol=4.2 * 0.5 / np.sqrt(600))


def test_a_window_is_split_where_a_sentence_starts_if_one_does():
    corpus = FakeCorpus(SIZES)
    starts, found = set(corpus.sentences.tolist()), 0
    for epoch in range(10):
        for pair in epoch_of_pairs(corpus, 0.0, epoch):
            if not pair.is_next:
                continue
            inside = [s for s in range(pair.a[0] + 1, pair.b[1]) if s in starts]
            if inside:
                found += 1
                assert pair.b[0] in inside
    assert found > 100


def test_windows_start_with_a_sentence_if_one_starts_near():
    corpus = FakeCorpus([4000, 3], sentence=4)  # sentences of at most 7 tokens, near is 5
    starts = set(corpus.sentences.tolist())
    begun = [pair.a[0] in starts for pair in epoch_of_pairs(corpus, 0.0)]
    assert np.mean(begun) > 0.85


def test_numbers_of_windows():
    """T = 20: one window, then one for each 15 tokens more."""
    expected = {0: 0, 1: 0, 2: 1, 19: 1, 20: 1, 21: 2, 35: 2, 36: 3, 50: 3, 51: 4}
    for size, count in expected.items():
        assert DocumentWindows(np.array([0, 5, 5 + size]), 20, 2).count == 1 + count


@pytest.mark.parametrize("short_seq_prob", [0.1, 1.0])
def test_lengths_of_short_examples_are_all_alike(short_seq_prob):
    """Of windows of 20 tokens: [2, 20], each with the same probability."""
    corpus = FakeCorpus([40_000, 40_000])
    pairs = epoch_of_pairs(corpus, short_seq_prob)
    lengths = np.array([p.b[1] - p.a[0] for p in pairs if p.is_next])
    counts = np.bincount(lengths, minlength=T + 1)
    assert len(lengths) > 2500 and not counts[:2].any() and len(counts) == T + 1
    n, p = len(lengths), short_seq_prob / (T - 1)
    # 4 standard errors of each count
    np.testing.assert_allclose(counts[2:T], n * p, atol=4 * np.sqrt(n * p * (1 - p)))


def test_replaced_segments_come_from_documents_by_their_size():
    """Within 4 standard errors; never from the document of A."""
    sizes = [30, 10, 300, 1, 60]
    corpus = FakeCorpus(sizes)
    sampler = PairSampler(corpus, T + 3, 0.0, seed=2)
    index = np.arange(8000)
    pairs = cut(sampler, index, np.zeros_like(index), np.zeros_like(index))
    found = np.array([document_of(corpus, p.b[0]) for p in pairs if not p.is_next])
    shares = np.bincount(found, minlength=5) / len(found)
    expected = np.array([0, 10, 300, 1, 60]) / 371
    atol = 4 * np.sqrt(expected * (1 - expected) / len(found))
    assert (np.abs(shares - expected) <= atol).all(), shares


def test_pairs_are_a_function_of_seed_and_index():
    corpus = FakeCorpus(SIZES)
    sampler = PairSampler(corpus, T + 3, 0.1, seed=3)
    count = sampler.count
    index = np.arange(2 * count)
    epoch, slots = index // count, index % count
    pairs = cut(sampler, index, epoch, slots)
    order = np.random.default_rng(0).permutation(2 * count)[:17]
    same = PairSampler(corpus, T + 3, 0.1, seed=3)
    again = cut(same, index[order], epoch[order], slots[order])
    assert again == [pairs[i] for i in order]
    other = cut(PairSampler(corpus, T + 3, 0.1, seed=4), index, epoch, slots)
    assert sum(a == b for a, b in zip(pairs, other, strict=True)) < 0.2 * len(pairs)
    moved = cut(sampler, index + 1, epoch, slots)  # another example of the same windows
    assert sum(a == b for a, b in zip(pairs, moved, strict=True)) < 0.2 * len(pairs)


def test_the_beginning_of_b_does_not_tell_the_label():
    """B starts inside a sentence as often when it is the true one as when it is replaced."""
    corpus = FakeCorpus([200] * 30, sentence=60)
    starts = set(corpus.sentences.tolist())
    inside = {True: [], False: []}
    for epoch in range(8):
        for pair in epoch_of_pairs(corpus, 0.1, epoch):
            inside[pair.is_next].append(pair.b[0] not in starts)
    assert np.mean(inside[True]) == pytest.approx(np.mean(inside[False]), abs=0.06)


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.1, 1.0])
def test_views_per_token_are_as_announced(short_seq_prob):
    rng = np.random.default_rng(3)
    corpus = FakeCorpus(rng.integers(2, 900, 60), sentence=6)
    announced = DocumentWindows(corpus.document_starts, T, 2).views_per_token(short_seq_prob)
    counts = []
    for epoch in range(3):
        pairs = epoch_of_pairs(corpus, short_seq_prob, epoch)
        counts.append(sum(p.a[1] - p.a[0] + p.b[1] - p.b[0] for p in pairs))
    # Windows that end a document may start later than announced; that is all that is left out.
    assert np.mean(counts) / corpus.tokens == pytest.approx(announced, rel=0.05)
    if short_seq_prob == 0:
        assert 1.25 < announced < 1.36


def test_no_token_is_lost_for_long():
    """Over 30 epochs every token of a document of two tokens is seen, the last ones included."""
    corpus = FakeCorpus(SIZES)
    views = np.zeros(corpus.tokens)
    for epoch in range(30):
        for pair in epoch_of_pairs(corpus, 0.1, epoch):
            views[slice(*pair.a)] += 1
            views[slice(*pair.b)] += 1
    lone = corpus.document_starts[:-1][np.array(SIZES) == 1]
    views[lone] = 30
    assert views.min() >= 8, np.argmin(views)


def test_a_corpus_without_two_tokens_in_a_row():
    with pytest.raises(UserError, match="no document of the corpus has two tokens"):
        PairSampler(FakeCorpus([1, 1]), 20, 0.1, seed=0)
