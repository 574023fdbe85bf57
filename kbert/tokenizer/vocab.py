"""WordPiece vocabularies: reading, checking, learning."""

import collections
import hashlib
import pathlib
import warnings

from kbert.config import is_text
from kbert.errors import UserError, one_line
from kbert.utils import atomic
from kbert.utils.formats import read_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"


def read_vocab(path):
    """Entries of a vocabulary file, in the order of their ids.

    A text file has one a line; the line number, from 0, is the id. Lines end at "\\n" alone and
    white space around an entry is dropped, as in google-research/bert: `bert-base-chinese` has
    entries that are or hold U+2028. A `.json` file is HF's `tokenizer.json`.

    Raises:
        UserError: no such file, not UTF-8, an entry twice, or a special token missing.
    """
    path = pathlib.Path(path)
    if path.suffix == ".json":
        return check_vocab(_tokenizer_json_vocab(path), path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the vocabulary {path} is not UTF-8: {error}.") from error
    return check_vocab([line.strip() for line in text.rstrip("\n").split("\n")], path)


def _tokenizer_json_vocab(path):
    """Entries of HF's `tokenizer.json`, those that were added to the vocabulary included."""
    values = read_json(path)
    try:
        ids, added = dict(values["model"]["vocab"]), values.get("added_tokens") or ()
        extra = {token["content"]: token["id"] for token in added if token["content"] not in ids}
        ids |= extra
        vocab = sorted(ids, key=ids.get)
        whole = [ids[word] for word in vocab] == list(range(len(vocab)))
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole or values["model"].get("continuing_subword_prefix", "##") != "##":
        raise UserError(
            f"{path} is no tokenizer.json of WordPiece with pieces in '##' and the ids 0, 1, 2, ..."
        )
    if extra:
        words = one_line(", ".join(map(str, list(extra)[:5])), 200)
        warnings.warn(
            f"{path} adds words to the vocabulary ({words}): HF finds them "
            f"anywhere in a text, kbert where they are words.",
            stacklevel=5,  # the caller of from_pretrained
        )
    return vocab


def check_vocab(vocab, path):
    """The vocabulary, a list of str, if it can be used; `path` is where it is from.

    Raises:
        UserError: an entry twice, or a special token missing.
    """
    if not all(map(is_text, vocab)):
        raise UserError(f"the vocabulary {path} has entries that are no text in UTF-8.")
    first_line = {}
    for number, token in enumerate(vocab, start=1):
        if token in first_line:
            raise UserError(
                f"the vocabulary {path} has {token!r} twice, in lines {first_line[token]} and "
                f"{number}. Every entry must be unique; give one of them another name."
            )
        first_line[token] = number
    missing = [token for token in SPECIAL_TOKENS if token not in first_line]
    if missing:
        raise UserError(
            f"the vocabulary {path} lacks {', '.join(missing)}; a BERT vocabulary has "
            f"{', '.join(SPECIAL_TOKENS)}. Make one with: python -m kbert.learn_vocab"
        )
    return vocab


def vocab_fingerprint(vocab, lower_case, unusual=None):
    """SHA-256 over the entries, the casing and unusual settings: equal ones give equal ids."""
    text = f"lower_case={lower_case}\n" + (f"{unusual}\n" if unusual else "") + "\n".join(vocab)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def learn_vocab(texts, vocab_size, lower_case=True):
    """Learns a WordPiece vocabulary with the Rust `tokenizers` library.

    Args:
        texts: iterable of str, which is read several times, so a list or
            `kbert.corpus.text_sources.Texts`.
        vocab_size: entries wanted, special tokens included; fewer come out of little text.
        lower_case: lower-case and strip accents first, as an uncased BERT does.

    Returns:
        list of str, special tokens first. A function of the texts: learnt twice, it is the same.

    Raises:
        UserError: `vocab_size` is too small, or the text holds no word.
    """
    if vocab_size < 32:
        raise UserError(f"vocab_size must be at least 32; got {vocab_size}.")
    if iter(texts) is texts:
        raise TypeError("texts is read several times; pass a list, not an iterator.")
    from tokenizers.normalizers import BertNormalizer

    normalizer = BertNormalizer(lowercase=lower_case)
    counts = collections.Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    # Room for every character of Chinese text, without letting rare ones crowd out words. With
    # their "##" forms and the special tokens, 13 fit into the smallest vocabulary.
    room = max(13, min(6000, vocab_size // 3))
    characters = [
        char for char in sorted(counts, key=lambda c: (-counts[c], c)) if not char.isspace()
    ]
    characters = sorted(characters[:room])
    # The library itself cuts the characters, numbers the "##" ones and breaks ties between pairs
    # by the order of a hash table, so its result would differ from call to call. It is told the
    # characters, and the "##" ones, which a first pass finds, as special tokens.
    specials = list(SPECIAL_TOKENS)
    learned = _train(texts, 0, lower_case, specials, characters)
    continuations = sorted(token for token in learned if token.startswith(CONTINUATION))
    vocab = _train(texts, vocab_size, lower_case, specials + continuations, characters)
    if len(vocab) == len(specials):
        raise UserError("cannot learn a vocabulary: the text holds no word.")
    return vocab


def _train(texts, vocab_size, lower_case, specials, characters):
    """The entries that the library learns, by their ids."""
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


def write_vocab(vocab, path):
    """Writes one entry a line, UTF-8."""
    atomic.write_text(path, "\n".join(vocab) + "\n")
