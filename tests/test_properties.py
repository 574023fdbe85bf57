"""Properties of pretraining and fine-tuning batches, whatever numbers come.

HYPOTHESIS_PROFILE=thorough tries thousands of cases; see tests/profiles.py.
"""

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from profiles import fewer
from test_sentence_pairs import FakeCorpus, cut, document_of

from kbert.data.bucketed_batches import BUCKETS, BucketedBatches, EncodedExample
from kbert.data.masking import choose_tokens, choose_words, mask_tokens, prediction_counts
from kbert.data.pretraining_batches import PretrainingExamples
from kbert.data.sentence_pairs import PairSampler
from kbert.tokenizer.vocab import SPECIAL_TOKENS
from kbert.utils.stateless_random import uniform

SEEDS = st.integers(0, 2**31 - 1)


# Pairs


@st.composite
def corpora(draw):
    """Documents of any sizes, at least two and one of two tokens; sentences of any length."""
    sizes = draw(st.lists(st.integers(1, 90), min_size=2, max_size=12))
    assume(max(sizes) >= 2)
    return FakeCorpus(sizes, draw(st.integers(1, 40)), draw(st.integers(0, 99)))


@given(corpora(), st.integers(5, 60), st.sampled_from((0.0, 0.1, 1.0)), st.integers(0, 3), SEEDS)
def test_pairs(corpus, max_seq_length, short_seq_prob, epoch, seed):
    sampler = PairSampler(corpus, max_seq_length, short_seq_prob, seed)
    T, count = max_seq_length - 3, sampler.count
    slots = np.arange(count)
    index, epochs = epoch * count + slots, np.full(count, epoch)
    pairs = cut(sampler, index, epochs, slots)
    covered = np.zeros(corpus.tokens, bool)
    for (a, a_end), (b, b_end), is_next in pairs:
        first, second = document_of(corpus, a), document_of(corpus, b)
        assert 0 <= a < a_end and 0 <= b < b_end and a_end - a + b_end - b <= T
        assert a_end <= corpus.document_starts[first + 1]
        assert b_end <= corpus.document_starts[second + 1]
        assert (b == a_end) if is_next else (first != second)
        covered[a : min(a + T, corpus.document_starts[first + 1])] = True
    if not short_seq_prob:
        sizes = np.diff(corpus.document_starts)
        assert covered.tolist() == np.repeat(sizes > 1, sizes).tolist()

    order = np.random.default_rng(seed).permutation(count)[: max(1, count // 2)]
    again = PairSampler(corpus, max_seq_length, short_seq_prob, seed)
    assert cut(again, index[order], epochs[order], slots[order]) == [pairs[i] for i in order]


class Recorded(PretrainingExamples):
    def batch(self, index, epoch, slots):
        self.seen += zip(index.tolist(), epoch.tolist(), slots.tolist(), strict=True)
        return super().batch(index, epoch, slots)


@fewer(20)
@given(st.integers(1, 9), st.integers(6, 40), st.integers(0, 5), SEEDS)
def test_every_window_comes_once_in_an_epoch(corpus, B, L, start, seed):
    examples = Recorded(corpus, L, seed=seed)
    examples.seen = []
    count = examples.count
    steps = 2 * count // B + 2
    for _ in examples.dataset(B, start, steps):
        pass
    numbers = [number for number, *_ in sorted(examples.seen)]
    assert numbers[: steps * B] == list(range(start * B, (start + steps) * B))
    for epoch in {number // count for number in numbers}:
        slots = [slot for number, e, slot in examples.seen if e == epoch == number // count]
        assert len(set(slots)) == len(slots)
        if epoch * count >= start * B and (epoch + 1) * count <= (start + steps) * B:
            assert sorted(slots) == list(range(count))


# Masks


@st.composite
def maskable_rows(draw):
    """(B, L) bool of text tokens, (B, L) bool of pieces that go on, (B, L) draws, (B,) counts."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 24)))
    rows = arrays_of.arrays(bool, shape)
    rng = np.random.default_rng(draw(SEEDS))
    counts = rng.integers(0, shape[1], shape[0])
    return draw(rows), draw(rows), rng.random(shape), counts


@given(st.integers(3, 512), st.floats(1e-3, 0.999), st.integers(1, 90))
def test_numbers_of_masks_are_those_of_google(length, rate, most):
    expected = min(most, max(1, round(length * rate)))
    assert prediction_counts(np.array([length]), rate, most).tolist() == [expected]


@given(maskable_rows())
def test_chosen_tokens(rows):
    maskable, _, draws, counts = rows
    chosen = choose_tokens(maskable, counts, draws)
    assert not (chosen & ~maskable).any()
    assert chosen.sum(axis=1).tolist() == np.minimum(counts, maskable.sum(axis=1)).tolist()


@given(maskable_rows())
def test_whole_words_are_masked_whole(rows):
    """And no word is left out that there is room for."""
    maskable, continues, draws, counts = rows
    chosen = choose_words(maskable, continues, counts, draws)
    for row in range(len(maskable)):
        words = []
        for place in np.flatnonzero(maskable[row]):
            goes_on = continues[row, place] and place and maskable[row, place - 1]
            words[-1].append(place) if goes_on else words.append([place])
        room = counts[row] - chosen[row].sum()
        assert room >= 0 and not (chosen[row] & ~maskable[row]).any()
        for word in words:
            assert len(set(chosen[row, word].tolist())) == 1
            assert chosen[row, word[0]] or len(word) > room


@given(maskable_rows(), st.integers(5, 3000), SEEDS)
def test_what_masks_put(rows, vocab_size, seed):
    maskable, _, draws, counts = rows
    B, L = maskable.shape
    M, mask_id = int(counts.max()) + 1, vocab_size - 1
    chosen = choose_tokens(maskable, counts, draws)
    ids = np.random.default_rng(seed).integers(0, vocab_size, (B, L)).astype(np.int32)
    fates = uniform(seed, 3, np.arange(B), 2 * M)
    kept = ids.copy()
    masked, positions, labels, weights = mask_tokens(ids, chosen, M, fates, mask_id, vocab_size)
    assert (ids == kept).all() and (masked[~chosen] == ids[~chosen]).all()
    for row in range(B):
        places = np.flatnonzero(chosen[row]).tolist()
        rest = [0] * (M - len(places))
        assert positions[row].tolist() == places + rest
        assert labels[row].tolist() == ids[row, places].tolist() + rest
        assert weights[row].tolist() == [1.0] * len(places) + rest
        for slot, place in enumerate(places):
            fate, token = fates[row, slot], int(fates[row, M + slot] * vocab_size)
            expected = mask_id if fate < 0.8 else ids[row, place] if fate < 0.9 else token
            assert masked[row, place] == expected and 0 <= expected < vocab_size


@fewer(6)
@given(SEEDS)
def test_shares_of_masks(seed):
    """80 % [MASK], 10 % as before, 10 % random: within 4.9 standard errors (1 in a million)."""
    B, L, V = 500, 40, 30_000
    ids = np.full((B, L), 7, np.int32)
    draws = uniform(seed, 3, np.arange(B), 2 * L)
    masked, *_ = mask_tokens(ids, np.ones((B, L), bool), L, draws, 4, V)
    counts = [(masked == 4).sum(), (masked == 7).sum(), ((masked != 4) & (masked != 7)).sum()]
    for found, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
        n = B * L
        assert abs(found - share * n) < 4.9 * math.sqrt(n * share * (1 - share)) + 5


@given(
    st.integers(5, 48),
    st.one_of(st.none(), st.integers(1, 30)),
    st.floats(0.01, 0.99),
    st.booleans(),
    st.sampled_from((0.0, 0.1, 1.0)),
    SEEDS,
)
def test_pretraining_features(corpus, L, M, rate, whole_words, short_seq_prob, seed):
    """[CLS] A [SEP] B [SEP], what is masked of them, and what stood there."""
    made = PretrainingExamples(corpus, L, M, rate, whole_words, short_seq_prob, seed)
    vocab = corpus.vocab_file.read_text().split()
    pad, _, cls, sep, _ = map(vocab.index, SPECIAL_TOKENS)
    slots = np.arange(min(9, made.count))
    index, epoch = slots + seed % 1000, np.zeros_like(slots)
    found = made.batch(index, epoch, slots)
    first, second, is_next = PairSampler(corpus, L, short_seq_prob, seed).cut(index, epoch, slots)
    for row in range(len(slots)):
        part = {name: array[row] for name, array in found.items()}
        a, b = corpus.read(*first[row]).tolist(), corpus.read(*second[row]).tolist()
        whole = [cls, *a, sep, *b, sep]
        padding = L - len(whole)
        assert padding >= 0
        assert part["attention_mask"].tolist() == [1] * len(whole) + [0] * padding
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * padding
        assert part["token_type_ids"].tolist() == types
        assert part["next_sentence_labels"] == (not is_next[row])
        there = part["masked_weights"] == 1
        positions = part["masked_positions"][there]
        expected = min(made.max_predictions, max(1, round(len(whole) * rate)))
        assert len(positions) <= min(expected, len(a) + len(b))
        assert whole_words or len(positions) == min(expected, len(a) + len(b))
        assert set(positions) <= set(range(1, len(whole) - 1)) - {len(a) + 1}
        restored = part["input_ids"].copy()
        restored[positions] = part["masked_ids"][there]
        assert restored.tolist() == whole + [pad] * padding


# Batches of items


@st.composite
def item_batches(draw):
    """Batches of items that their first token identifies, parts, and what the labels are."""
    lengths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=30))
    kind, choices = draw(st.sampled_from(("class", "tags", "choices"))), draw(st.integers(2, 3))
    items = []
    for number, length in enumerate(lengths):
        shape = (choices, length) if kind == "choices" else (length,)
        ids = np.full(shape, 5, np.int32)
        ids[..., 0] = 100 + number
        labels = np.full(length if kind == "tags" else (), number, np.int32)
        weights = np.ones(labels.shape, np.float32)
        items.append(EncodedExample(ids, np.ones_like(ids), labels, weights))
    parts = draw(st.sampled_from((1, 2, 3, 4)))
    B = parts * draw(st.integers(1, 5))
    longest = draw(st.sampled_from((70, 96, 128)))
    return BucketedBatches(items, B, longest, 0, draw(SEEDS)), items, B, parts, kind


@given(item_batches(), st.integers(0, 3))
def test_batches_hold_each_item_once_in_an_epoch(made, epoch):
    batches, items, B, parts, kind = made
    steps = batches.steps_per_epoch
    assert steps == math.ceil(len(items) / B)
    seen = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        whole = batches.batch(step)
        cuts = [batches.batch(step, part, parts) for part in range(parts)]
        weights = whole["label_weights"].reshape(B, -1)
        for name, array in whole.items():
            joined = np.concatenate([found[name] for found in cuts])
            counts = weights.any(axis=1)  # rows that do not count may be copies of others
            assert joined.shape == array.shape and joined.dtype == array.dtype
            assert (joined[counts] == array[counts]).all()
            assert name != "label_weights" or (joined == array).all()
        L = whole["input_ids"].shape[-1]
        longest = max(items[i].length for i in whole["input_ids"].reshape(B, -1)[:, 0] - 100)
        assert longest <= L and (L in BUCKETS or L == 70)
        for ids, row in zip(whole["input_ids"].reshape(B, -1), weights, strict=True):
            number = ids[0] - 100
            if row.any():
                seen.append(number)
                assert row.sum() == (items[number].length if kind == "tags" else 1)
        rows = whole["labels"].reshape(B, -1)[:, 0]
        assert (rows == whole["input_ids"].reshape(B, -1)[:, 0] - 100).all()
        real = whole["attention_mask"].reshape(B, -1).sum(axis=1)
        sizes = [items[i].input_ids.size for i in rows]
        assert real.tolist() == sizes
    assert sorted(seen) == list(range(len(items)))
