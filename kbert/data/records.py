"""Reads records of examples from JSON, Parquet and Arrow files and TFDS; `tables` reads tables.

A record is a list of cells, or a dict. A record that cannot be read is returned as a `BadExample`,
so that the caller can skip it; a file that cannot be read raises UserError.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kbert.corpus.arrow_files import column_names, dataset_files, is_arrow_file, read_rows
from kbert.corpus.text_sources import load_tfds
from kbert.errors import UserError
from kbert.fields import is_text
from kbert.utils import storage
from kbert.utils.input_files import encoding_note, read_byte_lines, read_text

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Record: TypeAlias = Mapping[str, object] | list[str]


class BadExample(Exception):
    """An example that cannot be used; the message is the reason, without file, line and period."""


@dataclasses.dataclass
class Records:
    """The records of a source, in order.

    Attributes:
        name: name of the source in messages.
        items: iterator over pairs (file and line, record).
        names: names of the columns, keys or features; None for a table without a header.
        width: number of columns of a table; None for dicts.
        notes: messages for the user, such as how the columns were found.
        flags: dict of flag -> value that selects the same columns in another file; empty if the
            task does not infer columns.
    """

    name: str
    items: "Iterator[tuple[str, Record | BadExample]]"
    names: tuple[str, ...] | None
    width: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    flags: "dict[str, str | None]" = dataclasses.field(default_factory=dict)

    def sample(self, count: int = 10_000) -> "list[Record]":
        """Returns the valid records among the first `count`; all records stay in `items`."""
        begun = list(itertools.islice(self.items, count))
        self.items = itertools.chain(begun, self.items)
        return [record for _, record in begun if not isinstance(record, BadExample)]

    def take_header(self) -> None:
        """Uses the first row as column names; later rows that repeat it become BadExamples."""
        _, first = next(self.items)
        self.names = tuple(cell.strip() for cell in first)
        repeated = BadExample("the line repeats the header")
        self.items = ((at, repeated if row == first else row) for at, row in self.items)


def column_values(rows: "Sequence[Record]", key: "Any") -> list[object]:
    """Returns the values of a column in records; None in records that lack it."""
    return [
        row.get(key) if isinstance(row, Mapping) else row[key] if key < len(row) else None
        for row in rows
    ]


def value_text(value: object) -> str:
    """Returns the repr of a value for a message, shortened after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def source_files(source: str) -> list[str]:
    """Returns the files, without duplicates, that comma-separated paths and globs name.

    The files of a glob are sorted. Commas and wildcards in the path of an existing file are taken
    literally. Other paths are returned even if no such file exists.
    """
    files = []
    for part in storage.split_patterns(source):
        is_glob = re.search(r"[*?[]", part) and not part.startswith("tfds:")  # as in train[:10%]
        matches = storage.glob(part) if is_glob else [part]
        if not matches:
            raise UserError(f"no file matches {part}. Check the path; put globs in quotes.")
        files += matches
    return list(dict.fromkeys(files))


def arrow_sources(source: str) -> list[str]:
    """Returns the Parquet and Arrow files that a source names; [] if it names others.

    The source is a file, or FOLDER or FOLDER:SPLIT as for `dataset_files`.
    """
    return [source] if is_arrow_file(source) else dataset_files(source) or []


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line) of a text file.

    The lines have no line endings. The byte order mark and blank lines at the end are dropped.
    Bytes that are not UTF-8 become surrogates (PEP 383), which `is_text` detects.
    """
    empty = []
    for number, line in enumerate(read_byte_lines(path), 1):
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if not text.strip(" \t"):
            empty.append((number, text))
            continue
        yield from empty
        empty.clear()
        yield number, text


def not_utf8_error(path: str) -> BadExample:
    """Returns the BadExample for a line that is not UTF-8; it names the likely encoding."""
    return BadExample(f"bytes that are not UTF-8{encoding_note(path)}")


def read_json_lines(path: str, name: str) -> Records:
    """Returns the records (dicts) of a file of JSON objects, one per line or in one list.

    Blank lines are skipped.
    """
    items, begun = _json_items(path, name), []
    for item in items:  # up to the first object, whose keys are the columns
        begun.append(item)
        if isinstance(item[1], dict):
            return Records(name, itertools.chain(begun, items), tuple(item[1]))
    problem = f"the first one is invalid: {begun[0][1]}" if begun else "it is empty"
    raise UserError(f"{path} has no line or item that is a JSON object; {problem}.")


def _json_items(path, name):
    lines = ((number, line) for number, line in read_lines(path) if line.strip())
    for place, (number, line) in enumerate(lines):
        if place == 0 and line.lstrip().startswith("["):
            yield from _list_items(path, name)
            return
        yield f"{name}, line {number}", _json_record(line, path)


def _list_items(path, name):
    try:
        items = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} starts as a JSON list, but is not valid JSON: {error}.") from None
    for number, item in enumerate(items, 1):
        problem = BadExample(f"every item must be a JSON object; got {value_text(item)}")
        yield f"{name}, item {number}", item if isinstance(item, dict) else problem


def _json_record(line, path):
    if not is_text(line):
        return not_utf8_error(path)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        return record
    return BadExample(f"every line must be a JSON object; got {value_text(line)}")


def read_arrow(files: Sequence[str], name: str) -> Records:
    """Returns the records (dicts) of Parquet or Arrow files; see `kbert.corpus.arrow_files`."""
    rows = itertools.chain.from_iterable(map(read_rows, files))
    items = (
        (f"{name}, row {number}", row or BadExample("bytes that are not UTF-8"))
        for number, row in enumerate(rows, 1)
    )
    return Records(name, items, column_names(files[0]))


def read_tfds(source: str) -> Records:
    """Returns the records (dicts) of `tfds:NAME` (split "train") or `tfds:NAME:SPLIT`.

    Bytes become str, arrays become lists, and the numbers of a ClassLabel with names become names
    (None for -1, which means "unlabeled").
    """
    dataset, info = load_tfds(source, with_info=True)
    items = (
        (f"{source}, example {number}", _tfds_record(example, info.features))
        for number, example in enumerate(dataset.as_numpy_iterator(), 1)
    )
    return Records(source, items, tuple(info.features))


def _tfds_record(example, features):
    try:
        return {key: _to_python(example[key], features[key]) for key in features}
    except UnicodeDecodeError:
        return BadExample("bytes that are not UTF-8")


def _to_python(value, feature):
    """Converts a value from TFDS, which may be nested, to Python values."""
    inner = getattr(feature, "feature", feature)  # a Sequence of a dict is a dict of arrays
    if isinstance(value, dict):
        return {key: _to_python(part, inner[key]) for key, part in value.items()}
    if hasattr(value, "tolist") or hasattr(value, "to_list"):  # NumPy values, ragged tensors
        value = value.tolist() if hasattr(value, "tolist") else value.to_list()
    if isinstance(value, list):
        return [_to_python(part, inner) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    names = getattr(feature, "names", None)
    if names and isinstance(value, int):  # -1 where a split has no labels
        return names[value] if 0 <= value < len(names) else None
    return value
