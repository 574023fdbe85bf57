"""Batches: what they are made of, and that position is everything."""

import itertools
import subprocess

import numpy as np
import pytest
from warm_python import PYTHON

from kbert.corpus import Corpus, prepare, shard_builder
from kbert.data import pretraining_batches, pretraining_dataset
from kbert.data.pretraining_batches import PretrainingExamples
from kbert.errors import UserError
from kbert.features import PRETRAINING_FEATURES, feature_shapes


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
            for name, (shape, dtype) in feature_shapes(
                PRETRAINING_FEATURES, B=len(index), L=29, M=5
            ).items()
        }
    )
    count = examples.count
    list(examples.dataset(5, steps=3 * count // 5))
    orders = [[slot for epoch, slot in seen if epoch == e] for e in range(2)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    first, second = (batches(corpus, B=count, start_step=e, steps=1)[0] for e in range(2))
    assert orders[0] != orders[1]
    texts = [{bytes(row) for row in batch["input_ids"]} for batch in (first, second)]
    assert len(texts[0] & texts[1]) < 0.05 * count


def original_ids(batch):
    """The rows before masking."""
    ids = batch["input_ids"].copy()
    for row in range(len(ids)):
        count = int(batch["masked_weights"][row].sum())
        ids[row, batch["masked_positions"][row, :count]] = batch["masked_ids"][row, :count]
    return ids


def test_the_next_epoch_cuts_elsewhere(corpus):
    """Not only the masks are fresh: the texts before masking differ, too."""
    count = PretrainingExamples(corpus, 29).count
    epochs = [batches(corpus, B=count, start_step=e, steps=1)[0] for e in range(2)]
    first, second = ({tuple(row) for row in original_ids(batch).tolist()} for batch in epochs)
    assert len(first) > 0.95 * count and len(first & second) < 0.15 * count


def test_a_tiny_corpus_as_literals(tmp_path, vocab_file):
    """Two documents of two tokens have six examples; one token of each is predicted."""
    (tmp_path / "t.txt").write_text("the cat\n\na dog\n")
    tiny = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", vocab_file)
    expected = {
        ((2, 5, 3, 6, 3), 0),  # the | cat
        ((2, 9, 3, 12, 3), 0),  # a | dog
        ((2, 5, 3, 9, 3), 1),  # the | a
        ((2, 5, 3, 12, 3), 1),  # the | dog
        ((2, 9, 3, 5, 3), 1),  # a | the
        ((2, 9, 3, 6, 3), 1),  # a | cat
    }
    found = set()
    for batch in batches(tiny, B=7, steps=9, max_seq_length=5, max_predictions_per_seq=None):
        labels = batch["next_sentence_labels"].tolist()
        found |= set(zip(map(tuple, original_ids(batch).tolist()), labels, strict=True))
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1]] * 7
        assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 7
        assert batch["masked_weights"].tolist() == [[1]] * 7
        assert set(batch["masked_positions"][:, 0]) <= {1, 3}
    assert found == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_an_epoch_is_well_mixed(corpus, seed):
    """No correlation of place and window, and no window in the same place in two epochs."""
    count, orders = 997, []
    examples = PretrainingExamples(corpus, 29, 5, seed=seed)
    examples.count = count
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
        "from kbert.corpus import Corpus\n"
        "from kbert.data import pretraining_dataset\n"
        f"dataset = iter(pretraining_dataset(Corpus({str(corpus.folder)!r}), 64))\n"
        "print(len(next(dataset)))"
    )
    done = subprocess.run([PYTHON, "-c", script], capture_output=True, timeout=600)
    assert done.returncode == 0 and done.stdout == b"7\n"


def test_corpora_of_several_shards_are_read_as_one(tmp_path, corpus, monkeypatch):
    assert len(corpus.shards) == 2 and isinstance(Corpus(corpus.folder), Corpus)
    monkeypatch.setattr(shard_builder, "BATCH_BYTES", 64)
    folder = corpus.folder.parent
    again = prepare(f"{folder}/*.text", tmp_path / "again", folder / "vocab.txt")
    assert_equal(batches(corpus), batches(again))


def test_a_batch_made_eagerly_is_that_of_the_dataset(corpus):
    examples = PretrainingExamples(corpus, 29, 5, seed=4)
    make, asked = examples.batch, []

    def batch(index, epoch, slots):
        asked.append((index, epoch, slots))
        return make(index, epoch, slots)

    examples.batch = batch
    found = [{k: v.numpy() for k, v in b.items()} for b in examples.dataset(6, steps=3)]
    ((index, epoch, slots),) = asked  # all batches at once
    assert list(index) == list(range(18))
    parts = [slice(i, i + 6) for i in (0, 6, 12)]
    assert_equal(found, [make(index[part], epoch[part], slots[part]) for part in parts])
    assert_equal(found, batches(corpus))


def test_batches_do_not_depend_on_how_many_are_made_at_once(corpus, monkeypatch):
    wanted = batches(corpus, steps=7)
    for tokens in (1, 29 * 6 * 3, 29 * 6 * 100):
        monkeypatch.setattr(pretraining_batches, "_TOKENS_AT_ONCE", tokens)
        assert_equal(batches(corpus, steps=7), wanted)
        endless = pretraining_dataset(corpus, 6, 29, max_predictions_per_seq=5, seed=4).take(7)
        assert_equal([{k: v.numpy() for k, v in batch.items()} for batch in endless], wanted)


def test_a_run_starts_anywhere_at_once(corpus):
    """Deep in a run as at its start: there is nothing to skip."""
    examples = PretrainingExamples(corpus, 29, 5, seed=4)
    count = examples.count
    far = 10**12
    (batch,) = batches(corpus, start_step=far, steps=1)
    assert contains(corpus, original_ids(batch)[0, 1:3].tolist())
    assert_equal([batch], batches(corpus, start_step=far - 2, steps=3)[2:])
    endless = pretraining_dataset(
        corpus, 6, 29, max_predictions_per_seq=5, seed=4, start_step=count
    )
    first = next(iter(endless))
    np.testing.assert_array_equal(
        first["input_ids"], batches(corpus, start_step=count, steps=1)[0]["input_ids"]
    )


def test_a_corpus_of_one_window(tmp_path, vocab_file):
    (tmp_path / "t.txt").write_text("the cat\n\nsat\n")
    tiny = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", vocab_file)
    ids = np.concatenate([original_ids(b) for b in batches(tiny, steps=5, max_seq_length=6)])
    assert {tuple(row) for row in ids.tolist()} == {(2, 5, 3, 6, 3, 0), (2, 5, 3, 7, 3, 0)}
