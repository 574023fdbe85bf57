"""BERT's tokenizer as TensorFlow ops, so that training and the exported graph share one object."""

import functools

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from kbert.errors import UserError
from kbert.tokenizer.files import read_tokenizer, write_tokenizer
from kbert.tokenizer.offsets import source_offsets, tokenize_words
from kbert.tokenizer.vocab import (
    CONTINUATION,
    SPECIAL_TOKENS,
    check_vocab,
    read_vocab,
    vocab_fingerprint,
)
from kbert.utils.formats import FORMATS, find_folder

PADDINGS = ("max_length", "longest")
# Special tokens pass the word splitter as private-use characters: it would cut '[MASK]' in three.
# The same characters in a user's text become the one of [UNK], which is what they are in BERT.
_STAND_INS = {token: chr(0xE000 + i) for i, token in enumerate(SPECIAL_TOKENS)}
_UNKNOWN = _STAND_INS["[UNK]"]
_RESERVED = r"[\x{E000}-\x{E004}]"
# What google-research/bert's _clean_text drops: NUL, U+FFFD, control and format characters other
# than tab, line feed and carriage return.
_DROPPED = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}\x{FFFD}]|\p{Cf}"
# Neither half a character, nor overlong, nor a surrogate: RE2 sees none of these as a character.
_VALID_UTF8 = r"[\x00-\x{D7FF}\x{E000}-\x{10FFFF}]*"
_IDEOGRAPHS = (  # _is_chinese_char there
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}"
    r"\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}\x{2F800}-\x{2FA1F}"
)
_PUNCTUATION = r"\pP$+<=>^`|~"
_ONE_CHARACTER_WORD = rf"[{_PUNCTUATION}{_IDEOGRAPHS}]"
# Finds text that may hold a word of over 200 characters: a run of characters none of which is
# surely a word of its own. Coarse, because a precise class repeated 200 times is too big for RE2.
_MAYBE_TOO_LONG = r"[0-9A-Za-z\x{80}-\x{33FF}\x{4DC0}-\x{4DFF}\x{A000}-\x{10FFFF}]{201}"


class BertTokenizer(tf.Module):
    """Text to WordPiece ids, equal to google-research/bert's `tokenization.FullTokenizer`.

    Runs eagerly, inside tf.data and inside exported graphs. Equality is tested on real and on
    hostile text for three vocabularies; the exceptions known are a handful of code points whose
    class changed between Unicode versions.

    Args:
        vocab_file: path of the vocabulary, one entry a line, or HF's `tokenizer.json`; or the list
            of the entries.
        lower_case: lower-case and strip accents, as the uncased models do.
        special_tokens_in_text: read '[MASK]', '[CLS]', '[SEP]', '[PAD]' and '[UNK]' written in the
            text as those tokens, or only those of them that are named: ("[MASK]",). Leave it off
            for text from strangers: off, they are punctuation and letters, as in any other text.
        strip_accents: None: as `lower_case` says. The few models that were trained otherwise say so
            in their folders.
        tokenize_chinese_chars: each ideograph is a word of its own, as in BERT; off in a few models
            of Japanese and Korean.

    Raises:
        UserError: the vocabulary cannot be read or used.
    """

    def __init__(
        self,
        vocab_file,
        lower_case=True,
        special_tokens_in_text=False,
        strip_accents=None,
        tokenize_chinese_chars=True,
    ):
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
        clash = [word for word in self.vocab if word in _STAND_INS.values()]
        if clash:
            raise UserError(
                f"the vocabulary {vocab_file} has the entries {clash}; kbert needs the private-use "
                f"characters U+E000 to U+E004 for itself. Give these entries other names."
            )
        pieces = {
            "vocab": [_STAND_INS.get(word, word) for word in self.vocab],
            "unknown_token": _UNKNOWN,
            "max_bytes_per_word": 4 * 200,
            "token_out_type": tf.int32,
        }
        try:
            if tokenize_chinese_chars:  # and its own lower-casing is not BERT's
                self._splitter = tf_text.FastBertTokenizer(
                    **pieces, lower_case_nfd_strip_accents=False
                )
            else:
                self._splitter = tf_text.FastWordpieceTokenizer(**pieces, no_pretokenization=True)
        except RuntimeError as error:  # such as white space inside of an entry
            raise UserError(f"the vocabulary {vocab_file} cannot be used: {error}") from error

    @classmethod
    def from_pretrained(cls, folder, special_tokens_in_text=False, lower_case=None):
        """The tokenizer of a folder of weights, in any format that `BertModel` reads.

        Args:
            folder: as for `BertModel.from_pretrained`; a name on the Hugging Face hub, too.
            special_tokens_in_text: as for the constructor.
            lower_case: None: as the folder says, or, where it does not (google-research/bert's do
                not), as its vocabulary shows: with capital letters or without.

        Raises:
            UserError: a file is missing or cannot be used, or is that of another tokenizer.
        """
        vocab, settings = read_tokenizer(find_folder(folder), lower_case)
        return cls(vocab, **settings, special_tokens_in_text=special_tokens_in_text)

    def save_pretrained(self, folder, format="kbert", max_length=None):
        """Writes vocabulary and settings into an existing folder.

        Args:
            folder: files of the same names are replaced.
            format: as for the models; where that of google-research/bert has no place for the
                settings, HF's `tokenizer_config.json` keeps them.
            max_length: for HF's tokenizer, the longest sequence of the model in tokens.

        Raises:
            UserError: no such format.
        """
        if format not in FORMATS:
            raise UserError(f"format must be one of {', '.join(FORMATS)}; got {format!r}.")
        write_tokenizer(folder, format, self.vocab, self.settings, max_length)

    @property
    def settings(self):
        """dict of the constructor's arguments that change ids."""
        names = ("lower_case", "strip_accents", "tokenize_chinese_chars")
        return {name: getattr(self, name) for name in names}

    @property
    def vocab_size(self):
        """Entries of the vocabulary."""
        return len(self.vocab)

    @property
    def fingerprint(self):
        """Equal for tokenizers that give equal ids to every text without special tokens."""
        usual = {"lower_case": self.lower_case, "strip_accents": self.lower_case}
        usual["tokenize_chinese_chars"] = True
        unusual = {name: value for name, value in self.settings.items() if value != usual[name]}
        return vocab_fingerprint(self.vocab, self.lower_case, unusual)

    def _normalize(self, texts):
        texts = tf.cond(  # transcoding takes longer than all that follows
            tf.reduce_all(tf.strings.regex_full_match(texts, _VALID_UTF8)),
            lambda: texts,
            lambda: tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace"),
        )
        texts = tf.strings.regex_replace(texts, _DROPPED, "")
        texts = tf.strings.regex_replace(texts, _RESERVED, _UNKNOWN)
        for token in self.special_tokens_in_text:
            pattern = token.replace("[", r"\[").replace("]", r"\]")
            texts = tf.strings.regex_replace(texts, pattern, f" {_STAND_INS[token]} ")
        if self.lower_case:
            texts = tf.strings.lower(texts, encoding="utf-8")
        if self.strip_accents:
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        return texts

    def token_to_id(self, token):
        """The id of an entry of the vocabulary, such as "##ing" or "[MASK]".

        Raises:
            UserError: no such entry.
        """
        if token not in self.vocab:
            raise UserError(f"the vocabulary has no entry {token!r}; split text with `tokenize`.")
        return self.vocab.index(token)

    def id_to_token(self, id):
        """The entry of the vocabulary with an id.

        Raises:
            UserError: no such id.
        """
        if not 0 <= id < self.vocab_size:
            raise UserError(f"ids are 0 to {self.vocab_size - 1}; got {id}.")
        return self.vocab[id]

    def decode(self, ids, skip_special_tokens=False):
        """Text of ids: words joined from their WordPieces, separated by spaces.

        Args:
            ids: (L,) ints, or (B, L), ragged or not.
            skip_special_tokens: omit [PAD], [CLS], [SEP], [MASK] and [UNK].

        Returns:
            str, or for (B, L) a list of str.

        Raises:
            UserError: an id that is not in the vocabulary.
        """
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_list()
        if len(ids) and np.ndim(ids[0]):
            return [self.decode(row, skip_special_tokens) for row in ids]
        tokens = map(self.id_to_token, np.asarray(ids, np.int64).tolist())
        if skip_special_tokens:
            tokens = (token for token in tokens if token not in SPECIAL_TOKENS)
        return " ".join(tokens).replace(f" {CONTINUATION}", "")

    def tokenize(self, texts):
        """WordPiece ids without [CLS] and [SEP].

        Args:
            texts: (B,) string, UTF-8; invalid bytes are dropped. A single string is a batch of one.

        Returns:
            (B, None) int32 RaggedTensor.
        """
        texts = self._normalize(_batch(texts))
        if not self.tokenize_chinese_chars:
            words = _words(texts, f"[{_PUNCTUATION}]")
            return self._splitter.tokenize(words).merge_dims(1, 2)
        may_be_too_long = _any_may_be_too_long(texts)
        texts = tf.cond(may_be_too_long, lambda: _drop_long_words(texts), lambda: texts)
        return self._splitter.tokenize(texts)

    def tokenize_with_offsets(self, texts):
        """The ids of `tokenize`, and where in the texts the piece of each comes from.

        `text_bytes[start:end]` is what a piece was made from, with the accents that were stripped
        from it; for valid UTF-8 it is whole characters. White space, characters that were dropped
        (unless in the middle of a piece) and invalid bytes are outside. The [UNK] of a word spans
        the word. Pieces of one character, as in Hangul, have equal offsets.

        Args:
            texts: (B,) string.

        Returns:
            ids, starts, ends: (B, None) int32 RaggedTensors of equal row lengths; offsets in bytes
            of the text as given, `end` exclusive.

        Raises:
            UserError: the tokenizer reads special tokens in the text.
        """
        if self.special_tokens_in_text:
            raise UserError(
                "offsets are not known where special tokens are read in the text; make the "
                "tokenizer with special_tokens_in_text=False."
            )
        sources = _batch(texts)
        texts = self._normalize(sources)
        alone = _ONE_CHARACTER_WORD if self.tokenize_chinese_chars else f"[{_PUNCTUATION}]"
        by_words = functools.partial(tokenize_words, self._splitter, texts, alone, _UNKNOWN, 200)
        if self.tokenize_chinese_chars:
            ids, starts, ends = tf.cond(
                _any_may_be_too_long(texts),
                by_words,
                lambda: tuple(self._splitter.tokenize_with_offsets(texts)),
            )
        else:
            ids, starts, ends = by_words()
        return ids, *source_offsets(sources, self._normalize, starts, ends)

    def __call__(self, texts, text_pairs=None, max_length=128, padding="max_length"):
        """Features of texts or of pairs of texts.

        A pair that is too long loses tokens from the end of its longer part, one at a time, as in
        google-research/bert.

        Args:
            texts: (B,) string, or a single string, which is a batch of one.
            text_pairs: as `texts`, or None.
            max_length: longest row in tokens; at least 3, with pairs at least 5.
            padding: "max_length", or "longest" to pad to the longest row of the batch.

        Returns:
            dict of input_ids, attention_mask and token_type_ids, each (B, L) int32.

        Raises:
            UserError: `max_length` is too small; no such `padding`.
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

    def pack(self, segments, max_length, padding="max_length"):
        """Features of WordPiece ids: [CLS] first [SEP] second [SEP], truncated and padded.

        Args:
            segments: one or two (B, None) int32 RaggedTensors. max_length: int, or int32 tensor.
            padding: as when called.

        Returns:
            as when called.
        """
        room = max_length - len(segments) - 1
        if len(segments) == 2:
            room = tf.cast(room, tf.int64)
            lengths = [segment.row_lengths() for segment in segments]
            first = tf.minimum(lengths[0], tf.maximum(room - lengths[1], (room + 1) // 2))
            second = tf.minimum(lengths[1], room - first)
            segments = [_first_tokens(segments[0], first), _first_tokens(segments[1], second)]
        else:
            segments = [segments[0][:, :room]]
        B = tf.shape(segments[0].row_lengths())[0]
        ids, types = [tf.fill([B, 1], self.cls_id)], [tf.zeros([B, 1], tf.int32)]
        for index, segment in enumerate(segments):
            segment = tf.concat([segment, tf.fill([B, 1], self.sep_id)], axis=1)
            ids.append(segment)
            types.append(tf.ones_like(segment) * index)
        ids, types = tf.concat(ids, axis=1), tf.concat(types, axis=1)
        shape = None
        if padding == "max_length":
            static = isinstance(max_length, int)
            shape = [None, max_length] if static else tf.stack([-1, max_length])
        return {
            "input_ids": ids.to_tensor(self.pad_id, shape=shape),
            "attention_mask": tf.ones_like(ids).to_tensor(0, shape=shape),
            "token_type_ids": types.to_tensor(0, shape=shape),
        }


def _batch(texts):
    """(B,) string; a single text as a batch of one."""
    texts = tf.convert_to_tensor(texts, tf.string)
    return tf.expand_dims(texts, 0) if texts.shape.rank == 0 else texts


def _any_may_be_too_long(texts):
    return tf.reduce_any(tf.strings.regex_full_match(texts, f"(?s).*{_MAYBE_TOO_LONG}.*"))


def _words(texts, alone):
    """(B, None) words: text between white space, and each character of the class `alone`.

    A word of over 200 characters is [UNK], as in google-research/bert.
    """
    texts = tf.strings.regex_replace(texts, f"({alone})", r" \1 ")
    texts = tf.strings.regex_replace(texts, r"\pZ", " ")  # tf.strings.split knows ASCII's alone
    words = tf.strings.split(texts)
    too_long = tf.strings.length(words.flat_values, unit="UTF8_CHAR") > 200
    return words.with_flat_values(tf.where(too_long, _UNKNOWN, words.flat_values))


def _drop_long_words(texts):
    """Puts [UNK] for each word of over 200 characters."""
    return tf.strings.reduce_join(_words(texts, _ONE_CHARACTER_WORD), axis=-1, separator=" ")


def _first_tokens(ragged, lengths):
    """The first `lengths[i]` values of row i."""
    keep = tf.ragged.range(ragged.row_lengths()) < tf.expand_dims(lengths, 1)
    return tf.ragged.boolean_mask(ragged, keep)
