"""Batches of labeled examples: what is in them, and that they depend on nothing but the step."""

import numpy as np
import pytest

from kbert.data.bucketed_batches import (
    BUCKETS,
    BucketedBatches,
    EncodedExample,
    bucket_length,
    pad_examples,
)

N, B, PAD = 23, 6, 0


def items_of(lengths, label=int):
    """Items whose ids are 100 * number + place, labeled with their number."""
    return [
        EncodedExample(
            100 * (i + 1) + np.arange(length, dtype=np.int32),
            (np.arange(length) > 2).astype(np.int32),
            np.asarray(label(i), np.int32),
            np.float32(1),
        )
        for i, length in enumerate(lengths)
    ]


@pytest.fixture
def batches():
    lengths = np.random.default_rng(0).integers(3, 51, N)
    return BucketedBatches(items_of(lengths), B, 50, PAD, seed=7)


def test_padding():
    items = [
        EncodedExample(np.int32([5, 6]), np.int32([0, 1]), np.int32(3), np.float32(0.5)),
        EncodedExample(np.int32([7, 8, 9]), np.int32([0, 0, 1]), np.int32(4), np.float32(2)),
    ]
    found = pad_examples(items, length=4, rows=3, pad_id=1)
    expected = {
        "input_ids": [[5, 6, 1, 1], [7, 8, 9, 1], [7, 8, 9, 1]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]],
        "token_type_ids": [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]],
        "labels": [3, 4, 4],
        "label_weights": [0.5, 2, 0],
    }
    assert {name: value.tolist() for name, value in found.items()} == expected
    assert found["label_weights"].dtype == np.float32


def test_padding_of_tags_and_of_choices():
    tags = EncodedExample(np.int32([5, 6]), np.int32([0, 0]), np.int32([1, 2]), np.float32([0, 1]))
    found = pad_examples([tags], length=3, rows=2, pad_id=0)
    assert found["labels"].tolist() == [[1, 2, 0], [1, 2, 0]]
    assert found["label_weights"].tolist() == [[0, 1, 0], [0, 0, 0]]
    choice = EncodedExample(np.int32([[5, 6], [7, 0]]), np.int32([[0, 1], [0, 0]]))
    found = pad_examples([choice], length=3, rows=1, pad_id=0)
    assert found["input_ids"].tolist() == [[[5, 6, 0], [7, 0, 0]]]
    assert found["attention_mask"].tolist() == [[[1, 1, 0], [1, 0, 0]]]
    assert "labels" not in found


@pytest.mark.parametrize(
    ("longest", "most", "length"),
    [(3, 512, 16), (16, 512, 16), (17, 512, 24), (100, 110, 110), (513, 600, 513), (40, 40, 40)],
)
def test_bucket_lengths(longest, most, length):
    assert bucket_length(longest, most) == length


def test_an_epoch_shows_each_item_once(batches):
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        seen, counted = [], 0
        for step in range(4 * epoch, 4 * epoch + 4):
            batch = batches.batch(step)
            assert batch["input_ids"].shape[0] == B
            assert batch["input_ids"].shape[1] in (*BUCKETS, 50)
            counts = batch["label_weights"] > 0
            counted += counts.sum()
            seen += batch["labels"][counts].tolist()
        assert counted == N and sorted(seen) == list(range(N))


def test_epochs_have_other_orders_and_seeds_too(batches):
    def order(batches, epoch):
        return [batches.batch(4 * epoch + i)["labels"].tolist() for i in range(4)]

    assert order(batches, 0) != order(batches, 1)
    other = BucketedBatches(batches._items, B, 50, PAD, seed=8)
    assert order(batches, 0) != order(other, 0)


def test_items_of_similar_length_come_together():
    lengths = np.random.default_rng(1).integers(3, 500, 600)
    batches = BucketedBatches(items_of(lengths), 10, 512, PAD, seed=0)
    padded = sum(batches.batch(i)["input_ids"].size for i in range(60))
    assert padded < 1.25 * lengths.sum()  # as they come it is about twice the tokens
    firsts = [batches.batch(i)["input_ids"].shape[1] for i in range(60)]
    assert firsts != sorted(firsts)


def test_a_dataset_goes_on_anywhere_and_in_parts(batches):
    whole = [batches.batch(step) for step in range(9)]
    parts = list(batches.dataset(2, first=4 * 3, count=4 * 3).as_numpy_iterator())
    assert len(parts) == 12
    for i, part in enumerate(parts):
        step, place = divmod(i, 3)
        for name, value in whole[4 + step].items():
            np.testing.assert_array_equal(
                part[name], value[2 * place : 2 * place + 2], err_msg=name
            )


def test_a_part_without_items_counts_nothing():
    batches = BucketedBatches(items_of([4, 5, 6, 7, 8]), 4, 50, PAD, seed=0)
    weights = [batches.batch(step, 1, 2)["label_weights"].sum() for step in range(2)]
    assert sorted(weights) == [0, 2]
    assert batches.batch(0, 1, 2)["input_ids"].shape == (2, 16)


def test_shapes_of_a_dataset():
    rows = items_of([4, 5, 6], label=lambda i: [i, 1, 0])
    spec = BucketedBatches(rows, 2, 50, PAD, seed=0).dataset(1).element_spec
    assert spec["input_ids"].shape.as_list() == [1, None]
    assert spec["labels"].shape.as_list() == [1, 3]
    choice = EncodedExample(
        np.ones((3, 5), np.int32), np.zeros((3, 5), np.int32), np.int32(1), np.float32(1)
    )
    spec = BucketedBatches([choice] * 2, 2, 50, PAD, seed=0).dataset(2).element_spec
    assert spec["input_ids"].shape.as_list() == [2, 3, None]
