"""Splits normalized texts into words with TensorFlow ops; words that are too long become [UNK]."""

import tensorflow as tf

from kbert.tokenizer.vocab import SPECIAL_TOKENS

# Private-use characters stand in for special tokens because the word splitter would split '[MASK]'
# into three. The same characters in a user's text become [UNK], as in BERT.
STAND_INS = {token: chr(0xE000 + i) for i, token in enumerate(SPECIAL_TOKENS)}
UNKNOWN = STAND_INS["[UNK]"]
IDEOGRAPHS = (  # as in _is_chinese_char of google-research/bert
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}"
    r"\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}\x{2F800}-\x{2FA1F}"
)
PUNCTUATION = r"\pP$+<=>^`|~"
ONE_CHARACTER_WORD = rf"[{PUNCTUATION}{IDEOGRAPHS}]"
LONGEST_WORD = 200  # characters; a longer word becomes [UNK], as in google-research/bert
# Matches text that may contain a word of over 200 characters, that is, a run of characters that may
# belong to one word. Approximate, because the exact class repeated 200 times is too large for RE2.
_MAYBE_TOO_LONG = r"[0-9A-Za-z\x{80}-\x{33FF}\x{4DC0}-\x{4DFF}\x{A000}-\x{10FFFF}]{201}"


def any_may_be_too_long(texts: tf.Tensor) -> tf.Tensor:
    """Returns () bool, whether any of the texts may contain a word of over 200 characters."""
    return tf.reduce_any(tf.strings.regex_full_match(texts, f"(?s).*{_MAYBE_TOO_LONG}.*"))


def split_words(texts: tf.Tensor, separate: str) -> tf.RaggedTensor:
    """Splits texts into words; words that are too long become [UNK].

    Args:
        texts: (B,) string, normalized.
        separate: RE2 pattern of the characters that are each a word of their own; the other words
            are separated by white space.

    Returns:
        (B, None) string RaggedTensor.
    """
    texts = tf.strings.regex_replace(texts, f"({separate})", r" \1 ")
    texts = tf.strings.regex_replace(texts, r"\pZ", " ")  # tf.strings.split knows only ASCII spaces
    words = tf.strings.split(texts)
    too_long = tf.strings.length(words.flat_values, unit="UTF8_CHAR") > LONGEST_WORD
    return words.with_flat_values(tf.where(too_long, UNKNOWN, words.flat_values))


def replace_long_words(texts: tf.Tensor) -> tf.Tensor:
    """Returns (B,) texts of words separated by spaces; words that are too long become [UNK]."""
    return tf.strings.reduce_join(split_words(texts, ONE_CHARACTER_WORD), axis=-1, separator=" ")
