"""Defines added tokens and reads them from tokenizer files of HF and KerasHub."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from kbert.errors import UserError
from kbert.fields import is_text
from kbert.tokenizer.vocab import SPECIAL_TOKENS, check_vocab
from kbert.utils.formats import read_json, require_keys


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched anywhere in a text, with the fields of HF's `AddedToken`.

    `lstrip`, `rstrip` and `special` do not affect ids: white space around a token has no ids, and
    only HF's `decode` uses `special`.

    Raises:
        UserError: the content is empty or consists of white space.
    """

    content: str
    single_word: bool = False  # match only if no adjacent character is a letter, digit or _
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False  # match after normalization, such as lower-casing
    special: bool = False

    def __post_init__(self) -> None:
        if not self.content.strip():
            raise UserError(f"an added token must not be blank; got {self.content!r}.")


_FLAGS = [field.name for field in dataclasses.fields(AddedToken) if field.name != "content"]
_NAMED = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True))


def read_added_tokens(folder: str | os.PathLike[str]) -> dict[AddedToken, int | None]:
    """Returns the added tokens of a folder, except BERT's five special tokens.

    They are read from `added_tokens.json`, `tokenizer.json` and `tokenizer_config.json`; a later
    file takes precedence. A token that only the lists of additional special tokens contain, in
    `tokenizer_config.json` and `special_tokens_map.json`, has no id.

    Returns:
        dict of AddedToken -> its id, or None if no file contains the id.
    """
    folder = pathlib.Path(folder)
    names = ("added_tokens", "tokenizer", "tokenizer_config", "special_tokens_map")
    plain, tokenizer, config, special = (_read_if_exists(folder / f"{name}.json") for name in names)
    _check_special_tokens(config, folder / "tokenizer_config.json")
    listed = _additional_special_tokens(config, folder / "tokenizer_config.json")
    listed += _additional_special_tokens(special, folder / "special_tokens_map.json")
    result: dict[str, tuple[AddedToken, int | None]] = {}
    for content, id in plain.items():
        is_special = content in listed
        token = AddedToken(content, normalized=not is_special, special=is_special)
        result[content] = token, _parse_id(id)
    if "class_name" in tokenizer:  # KerasHub's
        tokenizer = {"added_tokens": (tokenizer.get("kbert") or {}).get("added_tokens")}
    for values in tokenizer.get("added_tokens") or []:
        token = _parse_token(values, folder / "tokenizer.json")
        result[token.content] = token, _parse_id(values.get("id"))
    decoder = config.get("added_tokens_decoder") or {}
    require_keys(decoder, (), folder / "tokenizer_config.json")
    for id, values in decoder.items():
        token = _parse_token(values, folder / "tokenizer_config.json")
        result[token.content] = (
            token,
            _parse_id(int(id) if id.isdecimal() and len(id) < 10 else None),
        )
    for content in listed:
        result.setdefault(content, (AddedToken(content, special=True), None))
    return {token: id for content, (token, id) in result.items() if content not in SPECIAL_TOKENS}


def _read_if_exists(path):
    return read_json(path) if path.is_file() else {}


def _parse_id(value):
    return value if type(value) is int else None


def _check_special_tokens(config, path):
    for name, token in _NAMED.items():
        value = config.get(f"{name}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if value not in (None, token):
            raise UserError(
                f"{path} has {name}_token {value!r}; kbert supports only BERT's {token}. Rename "
                f"the token in all tokenizer files."
            )


def _additional_special_tokens(values, path):
    """Returns the additional special tokens of a file."""
    listed = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = values.get(name) or []
        if not isinstance(tokens, list | dict):
            raise UserError(f"{path}: {name} must be a list of tokens; got {tokens!r}.")
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            content = token.get("content") if isinstance(token, dict) else token
            if is_text(content) and content.strip():
                listed.append(content)
    return listed


def _parse_token(values: object, path: pathlib.Path) -> AddedToken:
    (content,) = require_keys(values, ["content"], path)
    flags = {name: values.get(name, False) for name in _FLAGS}
    if not is_text(content) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(
            f"{path}: the content of an added token must be a string, and {', '.join(_FLAGS)} must "
            f"be true or false; got {values!r}."
        )
    try:
        return AddedToken(content, **flags)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def with_added_tokens(
    vocab: Sequence[str], tokens: Mapping[AddedToken, int | None], folder: pathlib.Path
) -> tuple[list[str], tuple[AddedToken, ...]]:
    """Returns a vocabulary with the added tokens, and the tokens in the order of their ids."""
    vocab, places = list(vocab), {word: i for i, word in enumerate(vocab)}
    ordered = sorted(tokens.items(), key=lambda item: (item[1] is None, item[1] or 0))
    for token, id in ordered:
        place = places.setdefault(token.content, len(vocab))
        if id not in (None, place):
            raise UserError(
                f"{folder}: the added token {token.content!r} has the id {id}, but its position in "
                f"the vocabulary is {place}. Ids must be 0, 1, 2, ... without gaps."
            )
        if place == len(vocab):
            vocab.append(token.content)
    added = sorted((token for token, _ in ordered), key=lambda token: places[token.content])
    return check_vocab(vocab, folder), tuple(added)
