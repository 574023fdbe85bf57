"""Where in the source text a piece comes from: byte offsets through normalisation, as TF ops.

Lower-casing, accents and dropped characters change the length of a text. What stays is the order:
the normalised text is, character by character, what its source characters became. So the length
in bytes that each of them comes to is all that is needed to find the way back.
"""

import tensorflow as tf


def tokenize_words(splitter, texts, alone, unknown, longest_word):
    """Pieces of texts that are cut into words first, which finds words that are too long.

    Args:
        splitter: has `tokenize_with_offsets`, as the tokenizers of tensorflow_text have.
        texts: (B,) string, normalised.
        alone: RE2 pattern of the characters that are words of their own.
        unknown: text to put for a word of more than `longest_word` characters; one piece.

    Returns:
        ids int32, starts and ends int64: (B, None) RaggedTensors of equal row lengths; byte
        offsets into `texts`.
    """
    characters, begins = tf.strings.unicode_split_with_offsets(texts, "UTF-8")
    ends = begins.flat_values + tf.cast(tf.strings.length(characters.flat_values), tf.int64)
    distinct, index = tf.unique(characters.flat_values, out_idx=tf.int64)
    is_alone = tf.gather(tf.strings.regex_full_match(distinct, alone), index)
    is_space = tf.gather(tf.strings.regex_full_match(distinct, r"\pZ|\s"), index)
    rows = characters.value_rowids()
    new_row = tf.concat([[True], rows[1:] != rows[:-1]], axis=0)[: tf.size(rows)]
    follows_break = tf.concat([[True], (is_alone | is_space)[:-1]], axis=0)[: tf.size(rows)]
    is_first = (new_row | follows_break | is_alone) & ~is_space
    word = tf.boolean_mask(tf.cumsum(tf.cast(is_first, tf.int64)) - 1, ~is_space)
    begins = tf.boolean_mask(begins.flat_values, is_first)  # of W words
    ends = tf.math.segment_max(tf.boolean_mask(ends, ~is_space), word)
    words = tf.RaggedTensor.from_value_rowids(
        tf.boolean_mask(characters.flat_values, ~is_space), word, nrows=tf.size(begins, tf.int64)
    )
    is_long = words.row_lengths() > longest_word
    words = tf.where(is_long, unknown, tf.strings.reduce_join(words, axis=-1))
    ids, starts, stops = splitter.tokenize_with_offsets(words)
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


def source_offsets(texts, normalize, starts, ends):
    """Byte offsets into texts, from byte offsets into what they become by normalisation.

    A piece begins where the source character of its first byte begins, and ends behind that of its
    last byte and the accents that were stripped from it. Other characters that were dropped belong
    to a piece only if they are in its middle. Pieces of one character, such as those of a Hangul
    syllable, all span it. Where normalisation changes the order of marks that are kept (a few
    vowel signs and musical symbols, in orders that nobody writes), it is that of the result.

    Args:
        texts: (B,) string, the source, any bytes.
        normalize: maps (N,) string to (N,) string; each character must come to the same number of
            bytes alone as in any text.
        starts, ends: (B, None) int64 RaggedTensors of spans of at least one byte.

    Returns:
        starts and ends, (B, None) int32 RaggedTensors.
    """
    codes, offsets = tf.strings.unicode_decode_with_offsets(texts, "UTF-8", errors="replace")
    distinct, index = tf.unique(codes.flat_values)
    distinct = tf.RaggedTensor.from_uniform_row_length(distinct, 1)
    distinct = tf.strings.unicode_encode(distinct, "UTF-8")
    sizes = tf.strings.length(normalize(distinct))  # 0: the character is dropped
    is_border = (sizes > 0) | ~tf.strings.regex_full_match(distinct, r"\p{Mn}")
    # Of every character in the batch, as if the texts were one: the bytes up to its end, and the
    # number of characters up to it that end a piece before them.
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
