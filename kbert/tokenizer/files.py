"""Reads and writes the tokenizer files of a model folder, in all supported formats."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import TypedDict

from kbert.errors import UserError
from kbert.tokenizer.added_tokens import AddedToken, read_added_tokens, with_added_tokens
from kbert.tokenizer.vocab import read_vocab, write_vocab
from kbert.utils import atomic
from kbert.utils.formats import read_json, require_keys

_HF_CLASSES = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_HF_PARTS = {
    "normalizer": "BertNormalizer",
    "pre_tokenizer": "BertPreTokenizer",
    "model": "WordPiece",
}
_KERAS_HUB_VOCAB = "assets/tokenizer/vocabulary.txt"


class TokenizerSettings(TypedDict, total=False):
    """The constructor arguments of `BertTokenizer` that are stored in files."""

    lower_case: bool
    strip_accents: bool
    tokenize_chinese_chars: bool
    added_tokens: tuple[AddedToken, ...]


def has_tokenizer(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a folder has a vocabulary in any format: vocab.txt or tokenizer.json."""
    return any((pathlib.Path(folder) / name).is_file() for name in ("vocab.txt", "tokenizer.json"))


def read_tokenizer(
    folder: str | os.PathLike[str], lower_case: bool | None = None
) -> tuple[list[str], TokenizerSettings]:
    """Returns the vocabulary and the tokenizer settings of a folder.

    In HF's and google-research/bert's formats, the vocabulary is read from `tokenizer.json` or, if
    there is none, from `vocab.txt`. The settings are read from both `tokenizer.json` and
    `tokenizer_config.json`; the latter, which kbert also writes, takes precedence. If neither
    specifies `lower_case`, as in a google-research/bert folder, the model is treated as cased if
    over 0.1 % of the entries have a capital letter. If sentence-transformers lower-cases all texts,
    `lower_case` is True.

    In KerasHub's format, the vocabulary is read from `assets/tokenizer/vocabulary.txt` and the
    settings from `tokenizer.json`. KerasHub's own presets have `strip_accents: false` even for
    models that were trained without accents, so their value is ignored, and accents are stripped if
    text is lower-cased. Added tokens are read by `read_added_tokens`.
    """
    folder = pathlib.Path(folder)
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder} has no vocabulary, neither vocab.txt nor tokenizer.json. Give the folder of "
            f"the weights, such as RUN/pretrain/final."
        )
    values = read_json(path) if path.is_file() else {}
    if "class_name" in values:
        settings, vocab_file = _keras_hub_settings(values, path), folder / _KERAS_HUB_VOCAB
    else:
        settings = _hf_settings(values, path) if values else {}
        settings |= _config_settings(read_json(config), config) if config.is_file() else {}
        vocab_file = path if values else folder / "vocab.txt"
    vocab, added = with_added_tokens(read_vocab(vocab_file), read_added_tokens(folder), folder)
    if added:
        settings["added_tokens"] = added
    if lower_case not in (None, settings.get("lower_case")):
        settings |= {"lower_case": lower_case, "strip_accents": lower_case}
    settings.setdefault("lower_case", not _has_capitals(vocab))
    settings.setdefault("strip_accents", settings["lower_case"])
    if lower_case is None and _lower_cases_first(folder):
        settings["lower_case"] = True  # accents are kept if the tokenizer keeps them
    settings.setdefault("tokenize_chinese_chars", True)
    settings.setdefault("added_tokens", ())
    return vocab, settings


def is_uncased(vocab_file: str | os.PathLike[str]) -> bool:
    """Returns whether a vocabulary is uncased.

    For vocab.txt and tokenizer.json, the tokenizer settings in the same folder decide. Other files
    are uncased unless over 0.1 % of their entries have a capital letter.
    """
    path = pathlib.Path(vocab_file)
    if path.name in ("vocab.txt", "tokenizer.json"):
        return read_tokenizer(path.parent)[1]["lower_case"]
    return not _has_capitals(read_vocab(path))


def _lower_cases_first(folder):
    """Returns whether sentence-transformers lower-cases texts before tokenizing them."""
    path = folder / "sentence_bert_config.json"
    return path.is_file() and read_json(path).get("do_lower_case") is True


def _has_capitals(vocab):
    """Returns whether over 0.1 % of the entries, except [UNK], <S> etc., have a capital letter."""
    words = [word for word in vocab if not word.startswith(("[", "<"))]
    return sum(word != word.lower() for word in words) > len(words) / 1000


def _config_settings(values, path):
    """Returns the settings in HF's `tokenizer_config.json`."""
    name = values.get("tokenizer_class") or _HF_CLASSES[0]
    if name not in _HF_CLASSES:
        raise UserError(
            f"{path} is for the tokenizer class {name}; kbert supports only BertTokenizer."
        )
    if values.get("do_basic_tokenize") is False:
        raise UserError(
            f"{path} has do_basic_tokenize false; kbert supports only true, the default."
        )
    return _explicit_settings(values, "do_lower_case", "tokenize_chinese_chars", path)


def _hf_settings(values, path):
    """Returns the settings in HF's `tokenizer.json`."""
    for part, kind in _HF_PARTS.items():
        part_type = values[part].get("type") if isinstance(values.get(part), dict) else None
        if part_type != kind:
            raise UserError(f"{path} has a {part} of type {part_type}; kbert supports only {kind}.")
    return _explicit_settings(values["normalizer"], "lowercase", "handle_chinese_chars", path)


def _keras_hub_settings(values, path):
    """Returns the settings in KerasHub's `tokenizer.json`."""
    if values["class_name"] != "BertTokenizer":
        raise UserError(
            f"{path} is for the tokenizer class {values['class_name']}; kbert supports only "
            f"BertTokenizer."
        )
    (config,) = require_keys(values, ["config"], path)
    (lower_case,) = require_keys(config, ["lowercase"], path)
    settings = _explicit_settings({"lowercase": lower_case}, "lowercase", "", path)
    kept = values.get("kbert", {})
    require_keys(kept, (), path)
    settings |= _explicit_settings(kept, "lower_case", "tokenize_chinese_chars", path)
    return settings


def _explicit_settings(values, lower_case, tokenize_chinese_chars, path):
    """Returns the settings in `values` under kbert's names.

    `lower_case` and `tokenize_chinese_chars` are the keys of these two settings in `values`.
    """
    names = {
        lower_case: "lower_case",
        "strip_accents": "strip_accents",
        tokenize_chinese_chars: "tokenize_chinese_chars",
    }
    settings = {}
    for key, name in names.items():
        value = values.get(key)
        if value is None:
            continue
        if not isinstance(value, bool):
            raise UserError(f"{path}: {key} must be true or false; got {value!r}.")
        settings[name] = value
    return settings


def write_tokenizer(
    folder: str | os.PathLike[str],
    format: str,
    vocab: Sequence[str],
    settings: TokenizerSettings,
    max_length: int | None = None,
) -> None:
    """Writes the tokenizer files that `read_tokenizer` reads.

    Args:
        folder: an existing folder.
        format: one of `kbert.utils.formats.FORMATS`. "kbert" and "google" have `vocab.txt` and
            `tokenizer_config.json`, "hf" also has `tokenizer.json`, "keras_hub" has its own
            `tokenizer.json` and `assets/tokenizer/vocabulary.txt`.
        vocab: entries of the vocabulary, including the added tokens.
        settings: as returned by `read_tokenizer`.
        max_length: maximum sequence length of the model in tokens; written only for HF.
    """
    folder = pathlib.Path(folder)
    if format == "keras_hub":
        _write_keras_hub(folder, vocab, settings)
        return
    (folder / "tokenizer.json").unlink(missing_ok=True)  # it takes precedence over vocab.txt
    write_vocab(vocab, folder / "vocab.txt")
    values = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": settings["lower_case"],
        "strip_accents": settings["strip_accents"],
        "tokenize_chinese_chars": settings["tokenize_chinese_chars"],
    }
    added = settings.get("added_tokens", ())
    if added:
        ids = {word: i for i, word in enumerate(vocab)}
        decoder = {str(ids[token.content]): dataclasses.asdict(token) for token in added}
        values["added_tokens_decoder"] = decoder
    if format == "hf":
        if max_length:
            values["model_max_length"] = max_length
        import tokenizers

        tokenizer = tokenizers.BertWordPieceTokenizer(
            {word: i for i, word in enumerate(vocab)},
            lowercase=settings["lower_case"],
            strip_accents=settings["strip_accents"],
            handle_chinese_chars=settings["tokenize_chinese_chars"],
        )
        for token in added:
            add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
            add([tokenizers.AddedToken(**dataclasses.asdict(token))])
        saved = json.loads(tokenizer.to_str())
        saved["model"]["max_input_chars_per_word"] = 200  # as in google-research/bert; HF's is 100
        atomic.write_json(folder / "tokenizer.json", saved)
    atomic.write_json(folder / "tokenizer_config.json", values)


def _write_keras_hub(folder, vocab, settings):
    (folder / _KERAS_HUB_VOCAB).parent.mkdir(parents=True, exist_ok=True)
    write_vocab(vocab, folder / _KERAS_HUB_VOCAB)
    added = [dataclasses.asdict(token) for token in settings.get("added_tokens", ())]
    kept = {**settings, "added_tokens": added}
    values = {
        "module": "keras_hub.models",
        "class_name": "BertTokenizer",
        "config": {
            "config_file": "tokenizer.json",
            "vocabulary": None,
            "lowercase": settings["lower_case"],
            "strip_accents": settings["strip_accents"],
        },
        "registered_name": "keras_hub>BertTokenizer",
        "kbert": kept,
    }
    atomic.write_json(folder / "tokenizer.json", values)
