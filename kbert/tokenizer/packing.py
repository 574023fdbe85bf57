"""Packs WordPiece ids into features: [CLS] first [SEP] second [SEP]."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.errors import UserError

if TYPE_CHECKING:
    from typing import TypeAlias

    from kbert.tokenizer.tokenizer import BertTokenizer

    Slice: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def truncated_slices(
    segments: Sequence[tf.RaggedTensor], max_length: int | tf.Tensor
) -> "list[Slice]":
    """Truncates segments to rows of at most `max_length` tokens, including [CLS] and [SEP].

    Args:
        segments: one or two (B, None) int32 RaggedTensors.
        max_length: int, or int32 tensor.

    Returns:
        List of slices, one per segment, to pass to `pack_slices`.
    """
    if len(segments) not in (1, 2):
        raise UserError(
            f"BERT reads one segment, or two (a pair); got {len(segments)}. Join some of them, "
            f"such as with tf.concat(segments, axis=1)."
        )
    rows = [segment.shape[0] for segment in segments]
    if None not in rows and len(set(rows)) > 1:
        raise UserError(
            f"the two segments must have the same number of rows; got {rows[0]} and {rows[1]}. A "
            f"single str is one text: repeat it to pair it with several."
        )
    room = tf.cast(max_length - len(segments) - 1, tf.int64)
    counts = [segment.row_lengths() for segment in segments]
    if len(segments) == 2:
        counts[0] = tf.minimum(counts[0], tf.maximum(room - counts[1], (room + 1) // 2))
        room -= counts[0]
    counts[-1] = tf.minimum(counts[-1], room)
    return [
        (segment.flat_values, segment.row_starts(), count)
        for segment, count in zip(segments, counts, strict=True)
    ]


def pack_slices(
    tokenizer: "BertTokenizer",
    slices: "Sequence[Slice]",
    length: int | tf.Tensor | None = None,
) -> dict[str, tf.Tensor]:
    """Converts slices of WordPiece ids to features: [CLS] first [SEP] second [SEP], padded.

    Args:
        tokenizer: BertTokenizer.
        slices: one or two tuples (ids, begins, counts): ids (N,) int32; begins and counts (B,)
            int. Row i has `counts[i]` ids, starting at `ids[begins[i]]`.
        length: L, length of the rows in tokens; None: the length of the longest row.

    Returns:
        dict with input_ids, attention_mask and token_type_ids, each (B, L) int32.
    """
    slices = [(ids, *(tf.cast(x, tf.int32)[:, None] for x in rows)) for ids, *rows in slices]
    if length is None:
        lengths = sum(count + 1 for *_, count in slices) + 1
        length = tf.reduce_max(tf.concat([lengths, [[1]]], axis=0))  # the batch may be empty
    place = tf.range(length)[None]
    packed, types = tf.where(place == 0, tokenizer.cls_id, tokenizer.pad_id), tf.zeros_like(place)
    first = tf.constant(1)
    for number, (ids, begin, count) in enumerate(slices):
        index = place - first
        inside = (index >= 0) & (index < count)
        ids = tf.concat([ids, [tokenizer.pad_id]], axis=0)  # there may be no ids
        packed = tf.where(inside, tf.gather(ids, tf.where(inside, begin + index, 0)), packed)
        packed = tf.where(index == count, tokenizer.sep_id, packed)
        types = tf.where((index >= 0) & (index <= count), number, types)
        first += count + 1
    return {
        "input_ids": packed,
        "attention_mask": tf.cast(place < first, tf.int32),
        "token_type_ids": types,
    }
