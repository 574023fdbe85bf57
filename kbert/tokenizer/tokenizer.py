"""BERT's tokenizer as TensorFlow ops, shared by training and exported graphs."""

import functools
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from kbert.errors import UserError
from kbert.tokenizer.added_tokens import AddedToken
from kbert.tokenizer.files import TokenizerSettings, read_tokenizer, write_tokenizer
from kbert.tokenizer.offsets import source_offsets, tokenize_words
from kbert.tokenizer.packing import pack_slices, truncated_slices
from kbert.tokenizer.token_matcher import TokenMatcher, stand_ins
from kbert.tokenizer.vocab import (
    CONTINUATION,
    SPECIAL_TOKENS,
    check_vocab,
    read_vocab,
    vocab_fingerprint,
)
from kbert.tokenizer.word_splitting import (
    IDEOGRAPHS,
    LONGEST_WORD,
    ONE_CHARACTER_WORD,
    PUNCTUATION,
    STAND_INS,
    UNKNOWN,
    any_may_be_too_long,
    replace_long_words,
    split_words,
)
from kbert.utils.formats import FORMATS, find_folder

PADDINGS = ("max_length", "longest")
_Texts = str | Sequence[str] | np.ndarray | tf.Tensor
_Ids = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | tf.Tensor | tf.RaggedTensor
_RESERVED = r"[\x{E000}-\x{E004}]"
# Characters that google-research/bert's _clean_text drops: NUL, U+FFFD, and control and format
# characters other than tab, line feed and carriage return.
_DROPPED = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}\x{FFFD}]|\p{Cf}"
# RE2 does not match truncated or overlong sequences or surrogates as characters.
_VALID_UTF8 = r"[\x00-\x{D7FF}\x{E000}-\x{10FFFF}]*"


class BertTokenizer(tf.Module):
    """Converts text to the WordPiece ids of google-research/bert's `tokenization.FullTokenizer`.

    Runs eagerly, inside tf.data and inside exported graphs. Tests compare the ids on real and
    adversarial text for three vocabularies; the only known differences are a handful of code points
    whose class changed between Unicode versions.

    Args:
        vocab_file: path of a vocabulary file with one entry per line or of HF's `tokenizer.json`,
            or a list of the entries.
        lower_case: whether to lower-case the text, as for uncased models.
        special_tokens_in_text: whether to parse '[MASK]', '[CLS]', '[SEP]', '[PAD]' and '[UNK]' in
            the text as special tokens, or a tuple of the tokens to parse, such as ("[MASK]",).
            Tokens that are not parsed become ordinary punctuation and letters; keep the default,
            False, for untrusted text.
        strip_accents: whether to strip accents; None: the value of `lower_case`.
        tokenize_chinese_chars: whether each ideograph is a separate word, as in BERT; False in a
            few Japanese and Korean models.
        added_tokens: entries of the vocabulary that are matched anywhere in a text, as in HF, such
            as "[E1]"; see `AddedToken`. `from_pretrained` reads them from the folder.

    Raises:
        UserError: the vocabulary cannot be read or used, or lacks an added token; or an argument is
            invalid.
    """

    vocab: list[str]
    lower_case: bool
    strip_accents: bool
    tokenize_chinese_chars: bool
    added_tokens: tuple[AddedToken, ...]
    special_tokens_in_text: tuple[str, ...]
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | list[str] | tuple[str, ...],
        lower_case: bool = True,
        special_tokens_in_text: bool | tuple[str, ...] = False,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        added_tokens: Sequence[AddedToken] = (),
    ) -> None:
        super().__init__(name="bert_tokenizer")
        if isinstance(vocab_file, (list, tuple)):
            self.vocab = check_vocab(list(vocab_file), "given")
            vocab_file = "given"
        else:
            self.vocab = read_vocab(vocab_file)
        self.lower_case = lower_case
        self.strip_accents = lower_case if strip_accents is None else strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        if isinstance(special_tokens_in_text, bool):
            special_tokens_in_text = SPECIAL_TOKENS if special_tokens_in_text else ()
        elif isinstance(special_tokens_in_text, str) or set(special_tokens_in_text) - {
            *SPECIAL_TOKENS
        }:
            raise UserError(
                f"special_tokens_in_text must be True, False, or a tuple of some of "
                f"{', '.join(SPECIAL_TOKENS)}; got {special_tokens_in_text!r}."
            )
        self.special_tokens_in_text = tuple(special_tokens_in_text)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self.vocab.index(token) for token in SPECIAL_TOKENS
        )
        self.added_tokens = tuple(added_tokens)
        contents = [token.content for token in self.added_tokens]
        by_content = STAND_INS | dict(zip(contents, stand_ins(len(contents)), strict=True))
        clash = [word for word in self.vocab if word in by_content.values()]
        if clash:
            raise UserError(
                f"the vocabulary {vocab_file} has the entries {clash}; kbert reserves the "
                f"private-use characters from U+E000 on. Rename these entries."
            )
        if missing := sorted(set(contents) - set(self.vocab)):
            raise UserError(
                f"the vocabulary {vocab_file} lacks the added tokens {', '.join(missing)}."
            )
        pieces = {
            "vocab": [by_content.get(word, word) for word in self.vocab],
            "unknown_token": UNKNOWN,
            "max_bytes_per_word": 4 * LONGEST_WORD,
            "token_out_type": tf.int32,
        }
        try:
            self._pieces = tf_text.FastWordpieceTokenizer(
                **pieces, no_pretokenization=not tokenize_chinese_chars
            )
        except RuntimeError as error:  # such as white space inside an entry
            raise UserError(f"the vocabulary {vocab_file} cannot be used: {error}") from error
        self._cleaner = tf_text.FastBertNormalizer()  # without lower-casing: it differs from BERT's
        self._raw_matcher, self._normalized_matcher = self._matchers(by_content)

    def _matchers(self, by_content):
        """Returns the TokenMatchers for texts before and after normalization."""
        matchers = []
        self._has_spaces = any(t.normalized and " " in t.content for t in self.added_tokens)
        for normalized in (False, True):
            tokens = [token for token in self.added_tokens if token.normalized == normalized]
            contents = [token.content for token in tokens]
            if normalized and contents:
                with tf.init_scope():
                    contents = [text.decode() for text in self._normalize(contents).numpy()]
            characters = [by_content[token.content] for token in tokens]
            single_word = [token.single_word for token in tokens]
            # HF's normalizer puts spaces around ideographs.
            spaced = normalized and self.tokenize_chinese_chars
            separate = f"[{IDEOGRAPHS}]" if spaced else r"\pZ"
            matchers.append(TokenMatcher(contents, characters, single_word, separate))
        return matchers

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        special_tokens_in_text: bool | tuple[str, ...] = False,
        lower_case: bool | None = None,
    ) -> Self:
        """Loads the tokenizer of a model folder, in any format that `BertModel` reads.

        Args:
            folder: as for `BertModel.from_pretrained`, including model names on the Hugging Face
                hub.
            special_tokens_in_text: as for the constructor.
            lower_case: whether to lower-case the text and strip accents. None: as the folder
                specifies; if it does not, as in google-research/bert, True unless over 0.1 % of the
                entries of the vocabulary have capital letters.

        Raises:
            UserError: a file is missing or invalid, or belongs to another tokenizer class.
        """
        vocab, settings = read_tokenizer(find_folder(folder), lower_case)
        return cls(vocab, **settings, special_tokens_in_text=special_tokens_in_text)

    def save_pretrained(
        self, folder: str | os.PathLike[str], format: str = "kbert", max_length: int | None = None
    ) -> None:
        """Writes the vocabulary and the settings into an existing folder.

        Args:
            folder: existing folder; files of the same names are replaced.
            format: one of `kbert.utils.formats.FORMATS`, as for `BertModel.save_pretrained`. For
                "google", which has no file of settings, HF's `tokenizer_config.json` is written.
            max_length: maximum sequence length of the model in tokens; written only for HF.

        Raises:
            UserError: the format is unknown.
        """
        if format not in FORMATS:
            raise UserError(f"format must be one of {', '.join(FORMATS)}; got {format!r}.")
        write_tokenizer(folder, format, self.vocab, self.settings, max_length)

    @property
    def settings(self) -> TokenizerSettings:
        """The constructor arguments that `save_pretrained` stores, as a dict."""
        return {
            "lower_case": self.lower_case,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "added_tokens": self.added_tokens,
        }

    @property
    def vocab_size(self) -> int:
        """Number of vocabulary entries."""
        return len(self.vocab)

    def extends(self, other: "BertTokenizer") -> bool:
        """Returns whether this tokenizer equals `other`, except for additional vocabulary entries.

        If so, the entries of `other` have the same ids in both tokenizers.
        """
        return self.vocab[: other.vocab_size] == other.vocab and self.settings == other.settings

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the vocabulary and of the settings."""
        default = {"lower_case": self.lower_case, "strip_accents": self.lower_case}
        default |= {"tokenize_chinese_chars": True, "added_tokens": ()}
        nondefault = {n: value for n, value in self.settings.items() if value != default[n]}
        return vocab_fingerprint(self.vocab, self.lower_case, nondefault)

    def _normalize(self, texts):
        texts = tf.cond(  # transcoding costs more than all later steps
            tf.reduce_all(tf.strings.regex_full_match(texts, _VALID_UTF8)),
            lambda: texts,
            lambda: tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace"),
        )
        texts = tf.strings.regex_replace(texts, _DROPPED, "")
        texts = tf.strings.regex_replace(texts, _RESERVED, UNKNOWN)
        for token in self.special_tokens_in_text:
            pattern = token.replace("[", r"\[").replace("]", r"\]")
            texts = tf.strings.regex_replace(texts, pattern, f" {STAND_INS[token]} ")
        if self.lower_case:
            texts = tf.strings.lower(texts, encoding="utf-8")
        if self.strip_accents:
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        if self._has_spaces:
            texts = tf.strings.regex_replace(texts, r"[\t\n\r\pZ]", " ")
        return texts

    def _replace_raw_tokens(self, texts):
        """Replaces added tokens that are matched before normalization."""
        if self.added_tokens:
            texts = tf.strings.regex_replace(texts, r"[\x{E005}-\x{F8FF}]", UNKNOWN)
        return self._raw_matcher.replace(texts)

    def token_to_id(self, token: str) -> int:
        """Returns the id of a vocabulary entry, such as "##ing" or "[MASK]".

        Raises:
            UserError: the vocabulary lacks the entry.
        """
        if token not in self.vocab:
            raise UserError(f"the vocabulary has no entry {token!r}; split text with `tokenize`.")
        return self.vocab.index(token)

    def id_to_token(self, id: int) -> str:
        """Returns the vocabulary entry with this id.

        Raises:
            UserError: the id is out of range.
        """
        if not 0 <= id < self.vocab_size:
            raise UserError(f"ids are 0 to {self.vocab_size - 1}; got {id}.")
        return self.vocab[id]

    def decode(self, ids: _Ids, skip_special_tokens: bool = False) -> str | list[str]:
        """Converts ids to text: joins WordPieces into words, separated by spaces.

        Args:
            ids: (L,) ints, or (B, L), ragged or not.
            skip_special_tokens: whether to omit [PAD], [CLS], [SEP], [MASK] and [UNK].

        Returns:
            str, or for (B, L) a list of str.

        Raises:
            UserError: an id is out of range, or `ids` has another type, such as str.
        """
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_list()
        elif not isinstance(ids, list | tuple):
            ids = np.asarray(ids).tolist()
        if isinstance(ids, list | tuple) and ids and np.ndim(ids[0]):
            return [self.decode(row, skip_special_tokens) for row in ids]
        numbers = np.asarray(ids)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise UserError(f"ids must be a list of ids, or a list of such lists; got {ids!r}.")
        tokens = map(self.id_to_token, numbers.tolist())
        if skip_special_tokens:
            tokens = (token for token in tokens if token not in SPECIAL_TOKENS)
        return " ".join(tokens).replace(f" {CONTINUATION}", "")

    def tokenize(self, texts: _Texts) -> tf.RaggedTensor:
        """Returns the WordPiece ids of texts, without [CLS] and [SEP].

        Args:
            texts: (B,) string, UTF-8; invalid bytes are dropped. A single string is a batch of one.

        Returns:
            (B, None) int32 RaggedTensor.

        Raises:
            UserError: `texts` is not a string or a vector of strings.
        """
        texts = self._normalize(self._replace_raw_tokens(_batch(texts)))
        texts = self._normalized_matcher.replace(texts)
        if not self.tokenize_chinese_chars:
            words = split_words(texts, f"[{PUNCTUATION}]")
            return self._pieces.tokenize(words).merge_dims(1, 2)
        may_be_too_long = any_may_be_too_long(texts)
        texts = tf.cond(may_be_too_long, lambda: replace_long_words(texts), lambda: texts)
        return self._pieces.tokenize(self._cleaner.normalize(texts))

    def tokenize_with_offsets(
        self, texts: _Texts
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Returns the ids of `tokenize` with the byte offsets of each piece in its text.

        `text_bytes[start:end]` is the source of a piece, including stripped accents. If the text is
        valid UTF-8, the source consists of whole characters. It has no white space, and dropped
        characters and invalid bytes belong to it only if they are inside the piece. The [UNK]
        of a word spans the word. Several pieces of one character, as in Hangul, have the same
        offsets.

        Args:
            texts: (B,) string, or a single string, which is a batch of one.

        Returns:
            ids, starts, ends: (B, None) int32 RaggedTensors with the same row lengths. Starts and
            ends are byte offsets into the original text; the ends are exclusive.

        Raises:
            UserError: `special_tokens_in_text` is not empty, or `texts` are not strings.
        """
        if self.special_tokens_in_text:
            raise UserError(
                "tokenize_with_offsets does not support special tokens in the text; create the "
                "tokenizer with special_tokens_in_text=False."
            )
        sources = self._replace_raw_tokens(_batch(texts))
        texts = self._normalized_matcher.replace(self._normalize(sources))
        separate = ONE_CHARACTER_WORD if self.tokenize_chinese_chars else f"[{PUNCTUATION}]"
        by_words = functools.partial(tokenize_words, self._split, texts, separate)
        if self.tokenize_chinese_chars:
            ids, starts, ends = tf.cond(
                any_may_be_too_long(texts), by_words, lambda: self._split(texts)
            )
        else:
            ids, starts, ends = by_words()
        starts, ends = self._normalized_matcher.source_offsets(texts, starts, ends)
        starts, ends = source_offsets(sources, self._normalize, starts, ends)
        return ids, *self._raw_matcher.source_offsets(sources, starts, ends)

    def _split(self, texts):
        """Splits normalized texts or words into WordPieces, with offsets into the argument."""
        if not self.tokenize_chinese_chars:
            return tuple(self._pieces.tokenize_with_offsets(texts))
        # tf_text.FastBertTokenizer gathers ragged rows for this, which takes 500 graph nodes.
        cleaned, offsets = self._cleaner.normalize_with_offsets(texts)
        ids, starts, ends = self._pieces.tokenize_with_offsets(cleaned)
        row = tf.gather(offsets.row_starts(), ids.value_rowids())
        return ids, *(
            place.with_flat_values(tf.gather(offsets.flat_values, row + place.flat_values))
            for place in (starts, ends)
        )

    def __call__(
        self,
        texts: _Texts,
        text_pairs: _Texts | None = None,
        max_length: int = 128,
        padding: str = "max_length",
    ) -> dict[str, tf.Tensor]:
        """Converts texts or text pairs to features.

        A pair that is too long is truncated one token at a time, from the end of the longer text,
        as in google-research/bert.

        Args:
            texts: (B,) string, or a single string, which is a batch of one.
            text_pairs: the second texts, like `texts`, or None.
            max_length: maximum row length in tokens, including [CLS] and [SEP]; at least 3, or 5
                with pairs.
            padding: "max_length", or "longest" to pad to the longest row of the batch.

        Returns:
            dict with input_ids, attention_mask and token_type_ids, each (B, L) int32.

        Raises:
            UserError: `max_length` is too small, `padding` is unknown, `texts` are not strings, or
                the numbers of `texts` and `text_pairs` differ.
        """
        if padding not in PADDINGS:
            raise UserError(f"padding must be one of {', '.join(PADDINGS)}; got {padding!r}.")
        specials = 2 if text_pairs is None else 3
        if max_length < 2 * specials - 1:
            raise UserError(f"max_length must be at least {2 * specials - 1}; got {max_length}.")
        segments = [self.tokenize(texts)]
        if text_pairs is not None:
            segments.append(self.tokenize(text_pairs))
        return self.pack(segments, max_length, padding)

    def pack(
        self,
        segments: Sequence[tf.RaggedTensor],
        max_length: int | tf.Tensor,
        padding: str = "max_length",
    ) -> dict[str, tf.Tensor]:
        """Converts WordPiece ids to features: [CLS] first [SEP] second [SEP], truncated and padded.

        Args:
            segments: one or two (B, None) int32 RaggedTensors.
            max_length: int, or int32 tensor, the maximum row length in tokens.
            padding: as for `__call__`.

        Returns:
            dict as from `__call__`.

        Raises:
            UserError: the number of segments or of rows is wrong.
        """
        slices = truncated_slices(segments, max_length)
        return pack_slices(self, slices, max_length if padding == "max_length" else None)


def _batch(texts):
    """Returns texts as a (B,) string tensor; a single text becomes a batch of one."""
    try:
        texts = tf.convert_to_tensor(texts, tf.string)
    except (TypeError, ValueError) as error:
        raise UserError(f"texts must be a str or a list of str; got {texts!r}.") from error
    if (texts.shape.rank or 0) > 1:
        raise UserError(f"texts must be a str or a list of str; got the shape {texts.shape}.")
    return tf.expand_dims(texts, 0) if texts.shape.rank == 0 else texts
