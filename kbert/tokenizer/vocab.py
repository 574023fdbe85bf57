"""Reads, validates, learns and writes WordPiece vocabularies."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from kbert.errors import UserError
from kbert.fields import is_text
from kbert.utils import atomic
from kbert.utils.formats import read_json
from kbert.utils.input_files import read_text

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"


def read_vocab(path: str | os.PathLike[str]) -> list[str]:
    """Returns the entries of a vocabulary file, in the order of their ids.

    A text file has one entry per line; the line number, from 0, is the id. Only "\\n" ends a line,
    because `bert-base-chinese` has entries with U+2028. White space around an entry is stripped, as
    in google-research/bert; a byte order mark and blank lines at the end are ignored. A `.json`
    file is HF's `tokenizer.json`.

    Raises:
        UserError: the file cannot be read, is not UTF-8, has a duplicate entry or lacks a special
            token, or a `.json` file is not a WordPiece tokenizer with the ids 0, 1, 2, ...
    """
    path = pathlib.Path(path)
    if path.suffix == ".json":
        return check_vocab(_tokenizer_json_vocab(path), path)
    text = read_text(path).rstrip(" \t\r\n")
    return check_vocab([line.strip() for line in text.split("\n")], path)


def _tokenizer_json_vocab(path):
    """Returns the entries of HF's `tokenizer.json`, including its added tokens."""
    values = read_json(path)
    try:
        ids, added = dict(values["model"]["vocab"]), values.get("added_tokens") or ()
        ids |= {token["content"]: token["id"] for token in added if token["content"] not in ids}
        vocab = sorted(ids, key=ids.get)
        whole = [ids[word] for word in vocab] == list(range(len(vocab)))
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole or values["model"].get("continuing_subword_prefix", "##") != "##":
        raise UserError(
            f"{path} is not a WordPiece tokenizer.json with the continuation prefix '##' and the "
            f"ids 0, 1, 2, ..."
        )
    return vocab


def check_vocab(vocab: list[str], path: str | os.PathLike[str]) -> list[str]:
    """Checks a vocabulary and returns it."""
    if not all(map(is_text, vocab)):
        raise UserError(f"the vocabulary {path} has entries that are not valid UTF-8 strings.")
    first_line = {}
    for number, token in enumerate(vocab, start=1):
        if token in first_line:
            raise UserError(
                f"the vocabulary {path} has {token!r} twice, on lines {first_line[token]} and "
                f"{number}. Entries must be unique; rename one of them."
            )
        first_line[token] = number
    missing = [token for token in SPECIAL_TOKENS if token not in first_line]
    if missing:
        raise UserError(
            f"the vocabulary {path} lacks {', '.join(missing)}; a BERT vocabulary has "
            f"{', '.join(SPECIAL_TOKENS)}. Create one: python -m kbert.learn_vocab"
        )
    return vocab


def vocab_fingerprint(
    vocab: Sequence[str], lower_case: bool, nondefault: Mapping[str, bool] | None = None
) -> str:
    """Returns the hexadecimal SHA-256 of the entries, `lower_case` and the non-default settings."""
    settings = f"{nondefault}\n" if nondefault else ""
    text = f"lower_case={lower_case}\n{settings}" + "\n".join(vocab)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def learn_vocab(texts: Iterable[str], vocab_size: int, lower_case: bool = True) -> list[str]:
    """Learns a WordPiece vocabulary with the Rust `tokenizers` library.

    Args:
        texts: texts that can be iterated over several times, such as a list or
            `kbert.corpus.text_sources.Texts`.
        vocab_size: maximum number of entries, including special tokens, at least 32; a short text
            yields fewer entries.
        lower_case: whether to lower-case the texts and strip accents first, as for uncased BERT.

    Returns:
        The entries, special tokens first. The same texts always give the same vocabulary.

    Raises:
        UserError: `vocab_size` is too small, or the texts contain no words.
        TypeError: `texts` is an iterator.
    """
    if vocab_size < 32:
        raise UserError(f"vocab_size must be at least 32; got {vocab_size}.")
    if iter(texts) is texts:
        raise TypeError("texts must be a list, not an iterator, because it is read several times.")
    from tokenizers.normalizers import BertNormalizer

    normalizer = BertNormalizer(lowercase=lower_case)
    counts = collections.Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    # 6,000 characters suffice for Chinese, and a third of the vocabulary leaves room for words. In
    # the smallest vocabulary, 13 characters fit beside their "##" forms and the special tokens.
    max_characters = max(13, min(6000, vocab_size // 3))
    characters = [
        char for char in sorted(counts, key=lambda c: (-counts[c], c)) if not char.isspace()
    ]
    characters = sorted(characters[:max_characters])
    # By default the library selects characters, numbers their "##" forms and breaks ties between
    # pairs in hash table order, so its result varies between calls. To make it deterministic, it
    # receives the characters, and their "##" forms from a first pass as special tokens.
    specials = list(SPECIAL_TOKENS)
    learned = _train(texts, 0, lower_case, specials, characters)
    continuations = sorted(token for token in learned if token.startswith(CONTINUATION))
    vocab = _train(texts, vocab_size, lower_case, specials + continuations, characters)
    if len(vocab) == len(specials):
        raise UserError("cannot learn a vocabulary: the text contains no words.")
    return vocab


def split_word(word: str, ids: Mapping[str, int]) -> list[int]:
    """Splits a word or a "##" piece; returns the ids, or [] if the vocabulary cannot form it.

    The longest match is taken first, as in google-research/bert.
    """
    result, begin = [], len(CONTINUATION) if word.startswith(CONTINUATION) else 0
    while begin < len(word):
        prefix = CONTINUATION if begin else ""
        for end in range(len(word), begin, -1):
            if prefix + word[begin:end] in ids:
                break
        else:
            return []
        result.append(ids[prefix + word[begin:end]])
        begin = end
    return result


def split_new_entries(vocab: Sequence[str], first: int) -> dict[int, list[int]]:
    """Splits the entries with ids from `first` on into entries with lower ids.

    Returns:
        dict of the id of each such entry -> result of `split_word`.
    """
    ids = {word: i for i, word in enumerate(vocab[:first])}
    return {i: split_word(vocab[i], ids) for i in range(first, len(vocab))}


def extend_vocab(
    texts: Iterable[str], vocab: Sequence[str], vocab_size: int, lower_case: bool = True
) -> list[str]:
    """Adds words of texts to a vocabulary: the words that save the most WordPieces.

    Args:
        texts: texts that contain the new words.
        vocab: existing entries, which keep their ids.
        vocab_size: maximum number of entries, including `vocab`; a short text yields fewer.
        lower_case: whether the vocabulary is uncased.

    Returns:
        `vocab`, then words that occur at least twice, ordered by the number of WordPieces saved.

    Raises:
        UserError: `vocab_size` is not larger than the vocabulary, or no word can be added.
    """
    if vocab_size <= len(vocab):
        raise UserError(
            f"vocab_size must be above {len(vocab)}, the size of the vocabulary to extend; got "
            f"{vocab_size}. To add up to 1,000 words: --vocab_size={len(vocab) + 1000}"
        )
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer, splitter = BertNormalizer(lowercase=lower_case), BertPreTokenizer()
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        words = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in words if len(word) <= 200)
    ids = {word: i for i, word in enumerate(vocab)}
    saved = {
        word: count * max(len(split_word(word, ids)) - 1, 1)
        for word, count in counts.items()
        if count > 1 and word not in ids
    }
    if not saved:
        raise UserError(
            "the text has no word to add: each is in the vocabulary or occurs only once."
        )
    best = sorted(saved, key=lambda word: (-saved[word], word))
    return [*vocab, *best[: vocab_size - len(vocab)]]


def size_note(vocab: Sequence[str], vocab_size: int) -> str:
    """Returns a note if a learned vocabulary has fewer than `vocab_size` entries, else ""."""
    if len(vocab) == vocab_size:
        return ""
    return (
        f"note: the vocabulary has {len(vocab):,} entries instead of {vocab_size:,}, because no "
        f"other word piece occurs twice in the text"
    )


def _train(texts, vocab_size, lower_case, specials, characters):
    """Trains the library's tokenizer and returns its entries in the order of their ids."""
    from tokenizers import BertWordPieceTokenizer

    learner = BertWordPieceTokenizer(lowercase=lower_case)
    learner.train_from_iterator(
        texts,
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=len(characters),
        initial_alphabet=characters,
        special_tokens=specials,
        show_progress=False,
    )
    ids = learner.get_vocab()
    return sorted(ids, key=ids.get)


def write_vocab(vocab: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Writes a vocabulary file, one entry per line, as UTF-8, atomically."""
    atomic.write_text(path, "\n".join(vocab) + "\n")
