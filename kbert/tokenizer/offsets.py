"""Maps WordPieces to byte offsets in the text before normalization, with TF ops.

Lower-casing, stripping accents and dropping characters change the length of a text but not the
order of its characters. The normalized byte length of each source character is therefore enough to
map normalized offsets back to source offsets.
"""

from collections.abc import Callable

import tensorflow as tf

from kbert.tokenizer.word_splitting import LONGEST_WORD, UNKNOWN

_Ragged = tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]


def tokenize_words(
    split: Callable[[tf.Tensor], _Ragged], texts: tf.Tensor, separate: str
) -> _Ragged:
    """Splits texts into words, replaces long ones with [UNK], and splits words into WordPieces.

    Args:
        split: function that splits (W,) words into WordPieces; returns ids, starts and ends,
            (W, None) RaggedTensors.
        texts: (B,) string, normalized.
        separate: RE2 pattern of the characters that are each a word of their own.

    Returns:
        ids int32, and starts and ends int64, byte offsets into `texts`: (B, None) RaggedTensors
        with the same row lengths.
    """
    characters, begins = tf.strings.unicode_split_with_offsets(texts, "UTF-8")
    ends = begins.flat_values + tf.cast(tf.strings.length(characters.flat_values), tf.int64)
    distinct, index = tf.unique(characters.flat_values, out_idx=tf.int64)
    is_separate = tf.gather(tf.strings.regex_full_match(distinct, separate), index)
    is_space = tf.gather(tf.strings.regex_full_match(distinct, r"\pZ|\s"), index)
    rows = characters.value_rowids()
    new_row = tf.concat([[True], rows[1:] != rows[:-1]], axis=0)[: tf.size(rows)]
    follows_break = tf.concat([[True], (is_separate | is_space)[:-1]], axis=0)[: tf.size(rows)]
    is_first = (new_row | follows_break | is_separate) & ~is_space
    word = tf.boolean_mask(tf.cumsum(tf.cast(is_first, tf.int64)) - 1, ~is_space)
    begins = tf.boolean_mask(begins.flat_values, is_first)  # of the W words
    ends = tf.math.segment_max(tf.boolean_mask(ends, ~is_space), word)
    words = tf.RaggedTensor.from_value_rowids(
        tf.boolean_mask(characters.flat_values, ~is_space),
        word,
        nrows=tf.size(begins, tf.int64),
        validate=False,
    )
    is_long = words.row_lengths() > LONGEST_WORD
    words = tf.where(is_long, UNKNOWN, tf.strings.reduce_join(words, axis=-1))
    ids, starts, stops = split(words)
    owner = ids.value_rowids()
    stops = tf.where(
        tf.gather(is_long, owner),
        tf.gather(ends, owner),
        tf.gather(begins, owner) + stops.flat_values,
    )
    values = ids.flat_values, tf.gather(begins, owner) + starts.flat_values, stops
    rows, B = tf.gather(tf.boolean_mask(rows, is_first), owner), tf.size(texts, tf.int64)
    return tuple(
        tf.RaggedTensor.from_value_rowids(v, rows, nrows=B, validate=False) for v in values
    )


def source_offsets(
    texts: tf.Tensor,
    normalize: Callable[[tf.Tensor], tf.Tensor],
    starts: tf.RaggedTensor,
    ends: tf.RaggedTensor,
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Maps byte offsets in normalized texts to byte offsets in the source texts.

    A piece starts at the source character of its first byte. It ends after the source character of
    its last byte and the accents stripped from that character. Other dropped characters belong to
    a piece only if they are inside it. If several pieces come from one character, such as a Hangul
    syllable, each spans the whole character. Normalization may reorder marks that it keeps (a few
    vowel signs and musical symbols, in unusual orders); the offsets then follow the new order.

    Args:
        texts: (B,) string, the source, any bytes.
        normalize: function from (N,) string to (N,) string; the normalized byte length of a
            character must not depend on its context.
        starts, ends: (B, None) int64 RaggedTensors; every span has at least one byte.

    Returns:
        Starts and ends in the source texts, (B, None) int32 RaggedTensors.
    """
    codes, offsets = tf.strings.unicode_decode_with_offsets(texts, "UTF-8", errors="replace")
    distinct, index = tf.unique(codes.flat_values)
    distinct = tf.RaggedTensor.from_uniform_row_length(distinct, 1)
    distinct = tf.strings.unicode_encode(distinct, "UTF-8")
    sizes = tf.strings.length(normalize(distinct))  # 0: the character is dropped
    is_border = (sizes > 0) | ~tf.strings.regex_full_match(distinct, r"\p{Mn}")
    # Cumulative counts over all characters of the batch, as if the texts were concatenated: of
    # normalized bytes, and of characters that cannot belong to the piece before them.
    bytes_before = tf.cumsum(tf.gather(tf.cast(sizes, tf.int64), index))
    borders_before = tf.cumsum(tf.gather(tf.cast(is_border, tf.int64), index))
    row_bytes = tf.gather(tf.concat([[0], bytes_before], axis=0), codes.row_splits)
    row = starts.value_rowids()
    first_byte = tf.gather(row_bytes, row)
    first = tf.searchsorted(bytes_before, first_byte + starts.flat_values, side="right")
    last = tf.searchsorted(bytes_before, first_byte + ends.flat_values, side="left")
    after = tf.searchsorted(borders_before, tf.gather(borders_before, last), side="right")
    offsets = tf.concat([offsets.flat_values, [0]], axis=0)
    source_starts = tf.gather(offsets, first)
    source_ends = tf.where(
        tf.cast(after, tf.int64) < tf.gather(codes.row_splits[1:], row),
        tf.gather(offsets, after),
        tf.cast(tf.gather(tf.strings.length(texts), row), tf.int64),
    )
    return (
        starts.with_flat_values(tf.cast(source_starts, tf.int32)),
        ends.with_flat_values(tf.cast(source_ends, tf.int32)),
    )
