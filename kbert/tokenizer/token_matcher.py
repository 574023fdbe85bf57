"""Matches added tokens anywhere in a text before it is split into words, as in HF's tokenizers.

A token is replaced in the text by a private-use character between spaces. The same character
replaces the token in the vocabulary, so the WordPiece tokenizer finds it as a word.
"""

import re
from collections.abc import Sequence

import tensorflow as tf

from kbert.errors import UserError

_MARK = "\ue005"  # the stand-ins are the characters after it
MAX_TOKENS = 0xF8FF - 0xE005
_WORD = r"[\pL\pM\p{Nd}\p{Nl}\p{Pc}]"  # \w in Rust


class TokenMatcher:
    """Replaces the longest matches of added tokens in texts, from left to right.

    Args:
        contents: tokens to find.
        stand_ins: the character that replaces each token.
        single_word: for each token, whether it matches only without a word character next to it,
            as in `AddedToken`.
        separate: RE2 pattern of word characters that may always be next to a token.
    """

    def __init__(
        self,
        contents: Sequence[str],
        stand_ins: Sequence[str],
        single_word: Sequence[bool],
        separate: str,
    ) -> None:
        self._separate = separate
        self._contents = list(contents)
        self._stand_ins = list(stand_ins)
        self._single_word = list(single_word)
        longest_first = sorted(self._contents, key=lambda content: -len(content.encode()))
        self._pattern = f"({'|'.join(map(re.escape, longest_first))})"

    def replace(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns (B,) texts in which " X " replaces each token, where X is its stand-in."""
        if not self._contents:
            return texts
        marked = tf.strings.regex_replace(texts, self._pattern, rf"{_MARK}\1{_MARK}")
        parts = tf.strings.split(marked, _MARK)  # each row: text, token, text, ..., text
        values, rows = parts.flat_values, parts.value_rowids()
        place = tf.range(tf.size(values, tf.int64)) - tf.gather(parts.row_starts(), rows)
        is_token = place % 2 == 1
        tokens = tf.boolean_mask(values, is_token)
        number = tf.argmax(
            tf.cast(tokens[:, None] == tf.constant(self._contents), tf.int32), axis=1
        )
        replaced = tf.gather(tf.constant([f" {char} " for char in self._stand_ins]), number)
        if any(self._single_word):
            is_word = self._is_word(values, place, tf.where(is_token)[:, 0])
            may_join = ~tf.gather(tf.constant(self._single_word), number)
            replaced = tf.where(is_word | may_join, replaced, tokens)
        replaced = tf.concat([replaced, [""]], axis=0)  # there may be no tokens
        index = tf.maximum(tf.cumsum(tf.cast(is_token, tf.int32)) - 1, 0)
        values = tf.where(is_token, tf.gather(replaced, index), values)
        return tf.strings.reduce_join(parts.with_flat_values(values), axis=-1)

    def _is_word(self, values, place, index):
        """Returns (T,) bool, True for the tokens at `index` without an adjacent word character."""
        last = tf.size(values, tf.int64) - 1
        earlier = tf.gather(values, tf.maximum(index - 2, 0))  # the previous token
        earlier = tf.where(tf.gather(place, index) > 1, earlier, "")
        before = tf.strings.join([earlier, tf.gather(values, index - 1)])
        follows = tf.gather(place, tf.minimum(index + 2, last)) > tf.gather(place, index)
        later = tf.where(follows, tf.gather(values, tf.minimum(index + 2, last)), "")
        after = tf.strings.join([tf.gather(values, index + 1), later])
        joined = tf.strings.regex_full_match(before, f"(?s).*{_WORD}")
        joined &= ~tf.strings.regex_full_match(before, f"(?s).*{self._separate}")
        follows = tf.strings.regex_full_match(after, f"(?s){_WORD}.*")
        return ~(joined | follows & ~tf.strings.regex_full_match(after, f"(?s){self._separate}.*"))

    def source_offsets(
        self, texts: tf.Tensor, starts: tf.RaggedTensor, ends: tf.RaggedTensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Maps byte offsets in the results of `replace` to byte offsets in its arguments.

        Args:
            texts: (B,) string, result of `replace`.
            starts, ends: (B, None) int RaggedTensors, offsets of spans of whole characters.

        Returns:
            Starts and ends in the original texts, like the arguments.
        """
        if not self._contents:
            return starts, ends
        codes, begins = tf.strings.unicode_decode_with_offsets(texts, "UTF-8", errors="replace")
        lengths = tf.cast(tf.strings.length(texts), tf.int64)
        rows = codes.value_rowids()
        base = tf.cumsum(lengths, exclusive=True)
        places = begins.flat_values + tf.gather(base, rows)  # in the concatenated texts
        sizes = (
            tf.concat([places[1:], [tf.reduce_sum(lengths)]], axis=0)[: tf.size(places)] - places
        )
        sizes = self._source_sizes(codes.flat_values, sizes)
        source_ends = tf.cumsum(sizes)
        row_base = tf.gather(tf.concat([[0], source_ends], axis=0), codes.row_splits)
        row = starts.value_rowids()
        first = tf.cast(starts.flat_values, tf.int64) + tf.gather(base, row)
        last = tf.cast(ends.flat_values, tf.int64) + tf.gather(base, row) - 1
        first, last = (tf.searchsorted(places, x, side="right") - 1 for x in (first, last))
        before = tf.gather(row_base, row)
        source_starts = tf.gather(source_ends - sizes, first) - before
        dtype = starts.dtype
        return (
            starts.with_flat_values(tf.cast(source_starts, dtype)),
            ends.with_flat_values(tf.cast(tf.gather(source_ends, last) - before, dtype)),
        )

    def _source_sizes(self, codes, sizes):
        """Returns the number of bytes of the original text that each character replaces."""
        stands = codes[:, None] == tf.constant([ord(char) for char in self._stand_ins])
        stands_in = tf.reduce_any(stands, axis=1)
        none = tf.zeros([1], tf.bool)
        beside = tf.concat([stands_in[1:], none], 0) | tf.concat([none, stands_in[:-1]], 0)
        tokens = tf.constant([len(content.encode()) for content in self._contents], tf.int64)
        tokens = tf.gather(tokens, tf.argmax(tf.cast(stands, tf.int32), axis=1))
        return tf.where(stands_in, tokens, tf.where(beside, 0, sizes))


def stand_ins(count: int) -> list[str]:
    """Returns a stand-in character for each added token; raises UserError for too many tokens."""
    if count > MAX_TOKENS:
        raise UserError(
            f"the tokenizer has {count:,} added tokens; kbert supports {MAX_TOKENS:,}. Add them to "
            f"vocab.txt instead, where they are matched as whole words."
        )
    return [chr(ord(_MARK) + 1 + i) for i in range(count)]
