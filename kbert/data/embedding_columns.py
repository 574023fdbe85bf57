"""Reads the examples of embed and rerank: pairs, pairs with negatives, and pairs with a score."""

import functools
import itertools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from kbert.data import column_names, validation
from kbert.data.column_profiles import is_numeric
from kbert.data.columns import (
    Columns,
    check_column_count,
    checked_columns,
    column_of_flag,
    count_text,
    quote_names,
    stated_header,
)
from kbert.data.examples import EmbeddingExample
from kbert.data.headers import normalize_name
from kbert.data.records import Records, not_utf8_error, read_lines
from kbert.errors import UserError
from kbert.fields import is_text
from kbert.utils.input_files import plain_name

if TYPE_CHECKING:
    from typing import TypeAlias

    from kbert.data.records import Record
    from kbert.settings.tasks import ColumnConfig

    Key: TypeAlias = str | int

# Normalized names, in the order in which they are tried. (premise, hypothesis) is not among them,
# because a premise may contradict its hypothesis.
_PAIRS = (("anchor", "positive"), ("query", "positive"), ("question", "positive"))
_PAIRS += (("query", "answer"), ("question", "answer"), ("anchor", "pos"), ("query", "pos"))
_PAIRS += tuple(pair for pair in column_names.PAIRS if pair[0] != "premise")
_PAIRS += (("query", "text"),)
_NEGATIVE = re.compile(r"(?:hard_)?neg(?:ative)?_?(\d*)")
_SCORES = ("score", "label", "similarity", "similarity_score", "relatedness_score", "gold_label")
_KNOWN = {name for pair in _PAIRS for name in pair} | {*_SCORES}


def embedding_records(
    records: Records, config: "ColumnConfig", labeled: bool
) -> "tuple[Records, Callable[[str, Record], EmbeddingExample]]":
    """Returns records without their header, and the function that converts them to examples."""
    return records, functools.partial(parse_texts, find_texts(records, config, labeled))


def is_plain_text(source: str, config: "ColumnConfig") -> bool:
    """Returns whether a source is a .txt file without tabs, and no flag makes it a table."""
    flags = (config.text_column, config.text_pair_column, config.label_column)
    is_table = config.header != "auto" or any(flags)
    if is_table or not plain_name(source).endswith(".txt"):
        return False
    return not any("\t" in line for _, line in itertools.islice(read_lines(source), 1000))


def text_records(path: str) -> "tuple[Records, Callable[[str, Record], EmbeddingExample]]":
    """Returns the lines of a text as records, and the function that pairs each with itself.

    Lines without text are skipped.
    """
    name = os.path.basename(path)
    items = (
        (f"{name}, line {number}", [line.strip()] if is_text(line) else not_utf8_error(path))
        for number, line in read_lines(path)
        if line.strip()
    )
    notes = ["reading single texts; each is paired with itself"]
    return Records(name, items, (), notes=notes), _pair_with_itself


def _pair_with_itself(where, record):
    (text,) = record
    return EmbeddingExample(where, (text, text))


def find_texts(records: Records, config: "ColumnConfig", labeled: bool) -> Columns:
    """Finds the columns of two texts, and of their negatives or their score; takes the header.

    Args:
        records: the records of a file.
        config: which columns to read.
        labeled: whether to read negatives and scores.

    Returns:
        Columns, whose `choices` are the negatives.

    Raises:
        UserError: the columns are missing or ambiguous.
    """
    if records.width is not None and _has_header(records, config):
        records.take_header()
    columns = _find_columns(records, config, labeled)
    kind = "pairs" if columns.label is None else f"pairs with the score {_name(records, columns)}"
    if columns.choices:
        kind = f"pairs, each with {count_text(len(columns.choices), 'negative')}"
    records.notes.append(f"reading {kind}")
    flags = {"text_column": columns.text, "text_pair_column": columns.text_pair}
    flags["label_column"] = columns.label
    records.flags = {flag: None if key is None else str(key) for flag, key in flags.items()}
    if records.width is not None:
        records.flags["header"] = "no" if records.names is None else "yes"
    return columns


def _name(records, columns):
    named = records.width is not None and records.names
    return repr(records.names[columns.label] if named else columns.label)


def _has_header(records, config):
    flags = (config.text_column, config.text_pair_column, config.label_column)
    stated = stated_header(config, flags)
    if stated is not None:
        return stated
    names = map(normalize_name, records.sample(1)[0])
    return sum(name in _KNOWN or bool(_NEGATIVE.fullmatch(name)) for name in names) >= 2


def _find_columns(records, config, labeled):
    check_column_count(records, 2)
    find = functools.partial(column_of_flag, records)
    text = find("text_column", config.text_column)
    pair = find("text_pair_column", config.text_pair_column)
    label = find("label_column", config.label_column)
    keys, negatives = _keys(records), {}
    if text is None and pair is None:
        text, pair, label = _usual_columns(records, keys, label)
    elif text is None or pair is None:
        raise UserError("set both --text_column and --text_pair_column, or neither.")
    for name, key in keys.items() if labeled else ():
        if (match := _NEGATIVE.fullmatch(name)) and key not in (text, pair, label):
            negatives[int(match[1] or 0)] = key
    choices = tuple(negatives[number] for number in sorted(negatives))
    if choices and label is not None:
        records.notes.append("not read: the score, because there are negatives")
        label = None
    label = label if labeled else None
    used = [key for key in (text, pair, label) if key is not None] + list(choices)
    return checked_columns(records, used, text=text, text_pair=pair, label=label, choices=choices)


def _keys(records):
    """Returns a dict of normalized name -> key or index of a column."""
    names = records.names or ()
    keys = names if records.width is None else range(len(names))
    return {normalize_name(name): key for name, key in zip(names, keys, strict=True)}


def _usual_columns(records, keys, label):
    """Returns the columns (text, second text, score or None), found by their usual names."""
    if records.names is None:
        return _columns_without_names(records, label)
    pairs = [pair for pair in _PAIRS if keys.keys() >= set(pair)]
    if not pairs:
        raise UserError(
            f"{records.name} has no two columns named {', '.join('/'.join(p) for p in _PAIRS[:2])} "
            f"or sentence1/sentence2; it has {quote_names(records.names)}. Set --text_column and "
            f"--text_pair_column to two texts, and --label_column to their score, if they have one."
        )
    if label is None:
        label = next((keys[name] for name in _SCORES if name in keys), None)
    return *(keys[name] for name in pairs[0]), label


def _columns_without_names(records, label):
    if records.width == 2 and label is None:
        return 0, 1, None
    rows = records.sample()
    if records.width == 3 and label in (None, 2) and all(is_numeric(row[-1]) for row in rows):
        return 0, 1, 2
    raise UserError(
        f"{records.name} has {records.width} columns and is read without a header, so the columns "
        f"must be given by number: --text_column=0 --text_pair_column=1, and --label_column for a "
        f"score. If its first row is a header, add --header=yes."
    )


def parse_texts(columns: Columns, where: str, record: "Record") -> EmbeddingExample:
    """Returns the EmbeddingExample of a record.

    Raises:
        BadExample: a value is missing or invalid.
    """
    validation.check_column_count(record, columns)
    negatives = (f"negative {number}" for number in range(1, len(columns.choices) + 1))
    names = ("the text", "the second text", *negatives)
    keys = (columns.text, columns.text_pair, *columns.choices)
    texts = tuple(
        validation.check_text(validation.get_value(record, key), name)
        for key, name in zip(keys, names, strict=True)
    )
    score = None
    if columns.label is not None:
        score = validation.parse_number_label(validation.get_value(record, columns.label), where)
    return EmbeddingExample(where, texts, score)
