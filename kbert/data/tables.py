"""Reads the rows of .csv and tab-separated files."""

import contextlib
import csv
import itertools
import re

from kbert.data.column_names import KNOWN
from kbert.data.headers import normalize_name
from kbert.data.records import BadExample, Records, not_utf8_error, read_lines
from kbert.errors import UserError
from kbert.fields import is_text
from kbert.utils.input_files import plain_name


def read_table(path: str, name: str) -> Records:
    """Returns the records of a .csv file, read by Python's csv module, or of a tab-separated file.

    Messages name a row by the number of its first line. In a .csv file, semicolons or tabs may
    separate the columns. Quotes have no special meaning in tab-separated files, unless the first
    1,000 lines are quoted as in CSV. The first row may be a header; see `Records.take_header`.
    """
    notes, begin = [], [line for _, line in itertools.islice(read_lines(path), 1000)]
    if plain_name(path).endswith(".csv"):
        separator = _separator(begin, path)
        if separator != ",":
            notes.append(f"the columns are separated by {separator!r}")
        rows = _csv_rows(path, separator, _has_spaces(begin, separator))
    elif _has_csv_quotes(begin):
        notes.append("the cells are quoted as in CSV")
        rows = _csv_rows(path, "\t")
    else:
        rows = ((number, line.split("\t")) for number, line in read_lines(path))
    items = ((f"{name}, line {number}", _checked_row(row, path)) for number, row in rows)
    where, first = next(items, (None, None))
    if first is None:
        raise UserError(f"{path} has no examples: it is empty.")
    if isinstance(first, BadExample):
        raise UserError(f"{where}: {first}. Fix it: the first row sets the number of columns.")
    items = itertools.chain([(where, first)], items)
    return Records(name, items, None, width=len(first), notes=notes)


def _separator(lines, path):
    """Returns the separator: a comma, unless only another character gives rows of equal width.

    If all commas may be decimal commas, as in 4,5, another character takes precedence.
    """
    equal = []
    for separator in ",;\t":
        with contextlib.suppress(csv.Error):
            rows = list(csv.reader(lines, delimiter=separator))
            widths = {len(row) for row in rows[: max(len(rows) - 1, 1)] if row}
            if len(widths) == 1 and widths != {1}:
                equal.append(separator)
    decimals = re.compile(r"(?<=\d),(?=\d)")
    if equal[0:1] == [","] != equal and not any("," in decimals.sub("", line) for line in lines):
        del equal[0]  # the commas are decimal commas, as in 4,5
    if len(equal) > 1 and len(lines) > 2:
        raise UserError(
            f"{path}: it is not clear which of {', '.join(map(repr, equal))} separates the "
            f"columns. Quote cells that contain any of these, or save the table with tabs as .tsv."
        )
    return equal[0] if equal else ","


def _has_csv_quotes(lines):
    """Returns whether the first lines of a tab-separated file are quoted as in CSV."""
    try:
        rows = list(csv.reader((f"{line}\n" for line in lines), delimiter="\t", strict=True))
    except csv.Error:
        return False
    cells = [cell for line in lines for cell in line.split("\t") if '"' in cell]
    are_quoted = bool(cells) and all(cell[0] == '"' or cell[-1] == '"' for cell in cells)
    if not are_quoted or len({len(row) for row in rows if row}) != 1:
        return False
    if any('""' in cell for cell in cells):
        return True
    columns = itertools.zip_longest(*(line.split("\t") for line in lines), fillvalue="")
    quoted = [[cell[:1] == '"' == cell[-1:] for cell in column] for column in columns]
    is_header = any(normalize_name(cell) in KNOWN for cell in rows[0])  # a header may lack quotes
    return any(sum(column) > 1 and all(column[is_header:]) for column in quoted)


def _has_spaces(lines, separator):
    """Returns whether a space precedes quoted cells, as in: "a", "b"."""
    is_spaced = f'{separator} "'
    if not any(is_spaced in line for line in lines):
        return False
    lines, rows = [f"{line}\n" for line in lines], []
    with contextlib.suppress(csv.Error):
        rows = list(csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True))
    cells = itertools.chain.from_iterable(csv.reader(lines, delimiter=separator))
    return len({len(row) for row in rows if row}) == 1 and any(c[:2] == ' "' for c in cells)


def _csv_rows(path, separator, has_spaces=False):
    csv.field_size_limit(2**31 - 1)  # characters in a cell; the default is 131,072
    lines = (f"{line}\n" for _, line in read_lines(path))
    # Strict, because otherwise an unclosed quote would span the rest of the file.
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=has_spaces)
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):  # the rest of the file would be lost silently
                raise UserError(
                    f"{path}: the quote opened on line {number} is not closed. Close it, or save "
                    f"the table with tabs as .tsv, where quotes have no special meaning."
                ) from None
            yield number, BadExample(f"the row is not valid CSV: {error}")


def _checked_row(row, path):
    if isinstance(row, BadExample):
        return row
    if not all(map(is_text, row)):
        return not_utf8_error(path)
    return row if any(row) else BadExample("the line is empty")
