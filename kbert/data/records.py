"""Reading files of examples as records: tables, JSON lines and TFDS datasets.

A record is a list of cells, or a dict. One that cannot be read comes as a `BadExample`, so that the
caller may leave it out and go on; a file that cannot be read is a UserError.
"""

import csv
import dataclasses
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Iterator

from kbert.corpus.text_sources import load_tfds
from kbert.errors import UserError
from kbert.utils.formats import find_folder


class BadExample(Exception):
    """An example that cannot be used. The text says why, without file, line and full stop."""


@dataclasses.dataclass
class Records:
    """The records of a source, in order.

    `name` stands in messages, `items` are pairs (where, record). `names` are those of the columns,
    keys or features, None in a table without header; `width` is the number of columns of a table.
    """

    name: str
    items: Iterator
    names: tuple | None
    width: int | None = None


def shown(value):
    """A value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def plain_name(path):
    """Path in lower case without .gz: its end tells the format."""
    return path.lower().removesuffix(".gz")


def check_inputs(folders, sources):
    """Checks that folders of weights exist and that files can be read, without TensorFlow.

    Args:
        folders: as for `find_folder`; sources: as for `kbert.tasks.examples.read_examples`. None
            is skipped.

    Raises:
        UserError: as for `find_folder` and `read_bytes`.
    """
    for folder in filter(None, folders):
        find_folder(folder)
    for source in filter(None, sources):
        if not source.startswith(("tfds:", "sample:")):
            next(read_bytes(source), None)


def read_bytes(path):
    """Lines of a plain or compressed file as bytes.

    Raises:
        UserError: there is no such file, it is a folder, cannot be read, or is damaged.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder. Give one file of it.")
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            yield from file  # cut at b"\n" only
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason.rstrip('.')}.") from error


def read_lines(path):
    """(number from 1, line) of a file, without line ends, byte order mark and last empty lines.

    Bytes that are not UTF-8 become surrogates (PEP 383), which `is_utf8` tells.
    """
    empty = []
    for number, line in enumerate(read_bytes(path), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if not text.strip(" \t"):
            empty.append((number, text))
            continue
        yield from empty
        empty.clear()
        yield number, text


def is_utf8(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def table(path, name, has_header):
    """Records of a .csv file, by Python's csv module, or else of one of tab-separated lines.

    The line of a row is the one it starts in. In tab-separated files quotes are text. `has_header`
    tells of the first row (a list of str) whether it is a header.

    Raises:
        UserError: the file is empty, or its first row cannot be read.
    """
    if plain_name(path).endswith(".csv"):
        rows = _csv_rows(path)
    else:
        rows = ((number, line.split("\t")) for number, line in read_lines(path))
    items = ((f"{name}, line {number}", _checked_row(row)) for number, row in rows)
    where, first = next(items, (None, None))
    if first is None:
        raise UserError(f"{path} has no examples: it is empty.")
    if isinstance(first, BadExample):
        raise UserError(f"{where}: {first}. Mend it: the first row gives the number of columns.")
    names = tuple(cell.strip() for cell in first) if has_header(first) else None
    items = items if names else itertools.chain([(where, first)], items)
    return Records(name, items, names, width=len(first))


def _csv_rows(path):
    lines = (f"{line}\n" for _, line in read_lines(path))
    reader = csv.reader(lines, strict=True)  # else a quote that is not closed eats the file
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):  # all that follows would be lost unseen
                raise UserError(
                    f"{path}: the quotes that open in line {number} are not closed. Mend them, or "
                    f"save the table with tabs as .tsv, where quotes are text."
                ) from None
            yield number, BadExample(f"the quotes are not those of CSV: {error}")


def _checked_row(row):
    if isinstance(row, BadExample):
        return row
    if not all(map(is_utf8, row)):
        return BadExample("bytes that are not UTF-8")
    return row if any(row) else BadExample("the line is empty")


def json_lines(path, name):
    """Records (dicts) of a file with one JSON object a line; empty lines are passed over.

    Raises:
        UserError: the file is one JSON list, or has no object.
    """
    items, begun = _json_items(path, name), []
    for item in items:  # to the first object, whose keys are the columns
        begun.append(item)
        if isinstance(item[1], dict):
            return Records(name, itertools.chain(begun, items), tuple(item[1]))
    problem = f"the first line: {begun[0][1]}" if begun else "it is empty"
    raise UserError(f"{path} has no line that is a JSON object; {problem}.")


def _json_items(path, name):
    lines = ((number, line) for number, line in read_lines(path) if line.strip())
    for place, (number, line) in enumerate(lines):
        if place == 0 and line.lstrip().startswith("["):
            raise UserError(f"{path} is a JSON list. Write one JSON object a line, without list.")
        yield f"{name}, line {number}", _json_record(line)


def _json_record(line):
    if not is_utf8(line):
        return BadExample("bytes that are not UTF-8")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        return record
    return BadExample(f"every line must be a JSON object; got {shown(line)}")


def tfds(source):
    """Records (dicts) of `tfds:NAME` (split "train") or `tfds:NAME:SPLIT`.

    Texts are str, arrays lists, and the numbers of a ClassLabel with names are its names.

    Raises:
        UserError: as `load_tfds`.
    """
    dataset, info = load_tfds(source, with_info=True)
    items = (
        (f"{source}, example {number}", _tfds_record(example, info.features))
        for number, example in enumerate(dataset.as_numpy_iterator(), 1)
    )
    return Records(source, items, tuple(info.features))


def _tfds_record(example, features):
    try:
        return {key: _plain(example[key], features[key]) for key in features}
    except UnicodeDecodeError:
        return BadExample("bytes that are not UTF-8")


def _plain(value, feature):
    """Python values of what TFDS gives for a feature, which may hold others."""
    inner = getattr(feature, "feature", feature)  # a Sequence of a dict is a dict of arrays
    if isinstance(value, dict):
        return {key: _plain(part, inner[key]) for key, part in value.items()}
    if hasattr(value, "tolist") or hasattr(value, "to_list"):  # numpy's, or of a ragged tensor
        value = value.tolist() if hasattr(value, "tolist") else value.to_list()
    if isinstance(value, list):
        return [_plain(part, inner) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    names = getattr(feature, "names", None)
    if names and isinstance(value, int):  # -1 where a split has no labels
        return names[value] if 0 <= value < len(names) else None
    return value
