"""NSP pairs and batches: what they are made of, how often, and from where."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from kbert.data import Corpus, preparation, prepare, pretraining_dataset
from kbert.data.pairs import PairCutter, Windows
from kbert.data.pretraining import PretrainingExamples
from kbert.data.vocab import SPECIAL_TOKENS, write_vocab
from kbert.errors import UserError
from kbert.features import PRETRAINING_FEATURES, feature_shapes

V = 400


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
    cutter = PairCutter(corpus, length + 3, short_seq_prob, seed)
    count = cutter.windows.count
    index = epoch * count + np.arange(count)
    return cutter.cut(index, np.full(count, epoch), np.arange(count))


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


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.1, 1.0])
def test_views_per_token_are_as_announced(short_seq_prob):
    rng = np.random.default_rng(3)
    corpus = FakeCorpus(rng.integers(2, 900, 60), sentence=6)
    announced = Windows(corpus.document_starts, T).views_per_token(short_seq_prob)
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
        Windows(np.array([0, 1, 2]), 20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """40 documents in two shards; the words are numbers, so that every span can be recognised."""
    folder = tmp_path_factory.mktemp("corpus")
    words = [f"w{i}" for i in range(V - 5 - 50)] + [f"##{i}" for i in range(50)]
    write_vocab([*SPECIAL_TOKENS, *words], folder / "vocab.txt")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        lines = []
        for _ in range(20):
            for _ in range(rng.integers(1, 9)):
                tokens = [words[i] for i in rng.integers(0, V - 55, rng.integers(2, 12))]
                tokens[::3] = [f"{token}{rng.integers(50)}" for token in tokens[::3]]
                lines.append(" ".join(tokens))
            lines.append("")
        (folder / f"{name}.text").write_text("\n".join(lines))
    return prepare(f"{folder}/*.text", folder / "corpus", folder / "vocab.txt")


def batches(corpus, B=6, steps=3, **kwargs):
    settings = {"max_seq_length": 29, "max_predictions_per_seq": 5, "seed": 4, **kwargs}
    return [
        {name: value.numpy() for name, value in batch.items()}
        for batch in pretraining_dataset(corpus, B, steps=steps, **settings)
    ]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        for name in PRETRAINING_FEATURES:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_shapes_and_dtypes_are_those_of_the_legend(corpus):
    (batch,) = batches(corpus, steps=1)
    found = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert found == feature_shapes(PRETRAINING_FEATURES, B=6, L=29, M=5)


def contains(corpus, ids):
    whole = [
        corpus.read(a, b).tolist()
        for a, b in zip(corpus.shard_starts, corpus.shard_starts[1:], strict=False)
    ]
    return any(ids == w[i : i + len(ids)] for w in whole for i in range(len(w)) if w[i] == ids[0])


@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_an_example_is_two_spans_of_the_corpus_between_special_tokens(corpus, whole_word_mask):
    continues = np.array([t.startswith("##") for t in (corpus.vocab_file).read_text().split("\n")])
    for batch in batches(corpus, steps=8, whole_word_mask=whole_word_mask):
        for i in range(6):
            row = {name: value[i] for name, value in batch.items()}
            ids, length = row["input_ids"].copy(), row["attention_mask"].sum()
            count = int(row["masked_weights"].sum())
            expected = min(5, max(1, round(float(length) * 0.15)))
            assert count <= expected if whole_word_mask else count == expected
            places = row["masked_positions"][:count]
            assert (np.diff(places) > 0).all() and not row["masked_positions"][count:].any()
            ids[places] = row["masked_ids"][:count]  # the original text again
            second = np.flatnonzero(row["token_type_ids"])
            begin, end = second[0], second[-1]
            assert (second == np.arange(begin, end + 1)).all() and end == length - 1
            assert ids[0] == 2 and ids[begin - 1] == 3 and ids[end] == 3
            assert (ids[length:] == 0).all() and (
                row["attention_mask"] == (np.arange(29) < length)
            ).all()
            a, b = ids[1 : begin - 1].tolist(), ids[begin:end].tolist()
            assert a and b and contains(corpus, a) and contains(corpus, b)
            assert contains(corpus, a + b) == (row["next_sentence_labels"] == 0)
            assert not set(places) & {0, begin - 1, end} and (places < length).all()
            if whole_word_mask:
                for place in places:  # a piece is masked with the piece before it
                    if continues[ids[place]] and place - 1 not in (0, begin - 1):
                        assert place - 1 in places


def test_a_start_step_goes_on_where_another_run_stopped(corpus):
    whole = batches(corpus, steps=40)
    for k in (1, 7, 33):
        assert_equal(whole[k:], batches(corpus, start_step=k, steps=40 - k))


def test_an_example_does_not_depend_on_the_batch_size(corpus):
    small, large = batches(corpus, B=4, steps=6), batches(corpus, B=8, steps=3)
    for name in PRETRAINING_FEATURES:
        np.testing.assert_array_equal(
            np.concatenate([batch[name] for batch in small]),
            np.concatenate([batch[name] for batch in large]),
        )


def test_an_epoch_visits_every_window_once_and_the_next_one_is_fresh(corpus):
    examples = PretrainingExamples(corpus, 29, 5, seed=4)
    seen = []
    examples.batch = lambda index, epoch, slots: (
        seen.extend(zip(epoch, slots, strict=True))
        or {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in feature_shapes(PRETRAINING_FEATURES, B=5, L=29, M=5).items()
        }
    )
    count = examples.windows.count
    list(examples.dataset(5, steps=3 * count // 5))
    orders = [[slot for epoch, slot in seen if epoch == e] for e in range(2)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    first, second = (batches(corpus, B=count, start_step=e, steps=1)[0] for e in range(2))
    assert orders[0] != orders[1]
    texts = [{bytes(row) for row in batch["input_ids"]} for batch in (first, second)]
    assert len(texts[0] & texts[1]) < 0.05 * count


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_an_epoch_is_well_mixed(corpus, seed):
    """No correlation of place and window, and no window in the same place in two epochs."""
    count, orders = 997, []
    examples = PretrainingExamples(corpus, 29, 5, seed=seed)
    examples.windows.count = count
    shapes = feature_shapes(PRETRAINING_FEATURES, B=count, L=29, M=5)
    examples.batch = lambda index, epoch, slots: (
        orders.append(slots)
        or {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    )
    for epoch in range(3):
        list(examples.dataset(count, start_step=epoch, steps=1))
    for order in orders:
        assert sorted(order) == list(range(count))
        assert abs(np.corrcoef(np.arange(count), order)[0, 1]) < 0.13  # 4 standard errors
        steps = np.unique(np.diff(order), return_counts=True)[1]
        assert steps.max() < 10  # no arithmetic progression
        assert (order == np.arange(count)).sum() < 7  # 1 is expected
    for a, b in itertools.pairwise(orders):
        assert (a == b).sum() < 7


def test_the_beginning_of_b_does_not_tell_the_label():
    """B starts inside a sentence as often when it is the true one as when it is replaced."""
    corpus = FakeCorpus([200] * 30, sentence=60)
    starts = set(corpus.sentences.tolist())
    inside = {True: [], False: []}
    for epoch in range(8):
        for pair in epoch_of_pairs(corpus, 0.1, epoch):
            inside[pair.is_next].append(pair.b[0] not in starts)
    assert np.mean(inside[True]) == pytest.approx(np.mean(inside[False]), abs=0.06)


def test_masks_differ_in_each_epoch_for_the_same_pair(corpus):
    examples = PretrainingExamples(corpus, 29, 5, short_seq_prob=0.0, seed=4)
    one = examples.batch(np.array([0]), np.array([0]), np.array([3]))
    same = examples.batch(np.array([0]), np.array([0]), np.array([3]))
    other = examples.batch(np.array([999]), np.array([0]), np.array([3]))
    np.testing.assert_array_equal(one["input_ids"], same["input_ids"])
    assert (one["masked_positions"] != other["masked_positions"]).any()


def test_seeds_and_settings_matter(corpus):
    plain = batches(corpus, steps=1)[0]
    for change in (
        {"seed": 5},
        {"mask_rate": 0.3},
        {"whole_word_mask": True},
        {"short_seq_prob": 1.0},
    ):
        changed = batches(corpus, steps=1, **change)[0]
        assert (plain["input_ids"] != changed["input_ids"]).any(), change


def test_default_number_of_slots_is_the_rate_of_the_length(corpus):
    batch = batches(corpus, steps=1, max_predictions_per_seq=None)[0]
    assert batch["masked_ids"].shape == (6, 5)  # 0.15 * 29 = 4.35


def test_settings_out_of_range(corpus):
    with pytest.raises(UserError, match=r"max_seq_length must be at least 5, .* got 4"):
        pretraining_dataset(corpus, 2, max_seq_length=4)
    with pytest.raises(UserError, match=r"mask_rate must be in \(0, 1\); got 15.0. Write 0.15"):
        pretraining_dataset(corpus, 2, mask_rate=15.0)


def test_a_program_that_stops_in_the_middle_ends(corpus):
    """tf.data threads that are inside Python when it shuts down used to make it hang."""
    script = (
        "from kbert.data import Corpus, pretraining_dataset\n"
        f"dataset = iter(pretraining_dataset(Corpus({str(corpus.folder)!r}), 64))\n"
        "print(len(next(dataset)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=100)
    assert done.returncode == 0 and done.stdout == b"7\n"


def test_corpora_of_several_shards_are_read_as_one(tmp_path, corpus, monkeypatch):
    assert len(corpus.shards) == 2 and isinstance(Corpus(corpus.folder), Corpus)
    monkeypatch.setattr(preparation, "BATCH_BYTES", 64)
    folder = corpus.folder.parent
    again = prepare(f"{folder}/*.text", tmp_path / "again", folder / "vocab.txt")
    assert_equal(batches(corpus), batches(again))
