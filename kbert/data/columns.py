"""Finds the columns of a table, or the keys of records, by flags or by default names."""

import csv
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kbert.errors import UserError

if TYPE_CHECKING:
    from kbert.data.records import Records
    from kbert.settings.tasks import ColumnConfig


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns to read: keys of a record (str) or indices in a row (int).

    Attributes:
        text, text_pair, label: the columns; None if there is none.
        one_hot: pairs (column of 0 and 1, name of its label).
        choices: columns of the choices.
        exact_width: number of cells that each row must have. None for records with keys, and for
            tables whose rows may have extra cells at the end, which is safe if there is no header
            and all columns are counted from the left.
        min_width: minimum number of cells of a row; 0 for records with keys.
    """

    text: str | int
    text_pair: str | int | None = None
    label: str | int | None = None
    one_hot: tuple[tuple[str | int, str], ...] = ()
    choices: tuple[str | int, ...] = ()
    exact_width: int | None = None
    min_width: int = 0


def is_number(column: str) -> bool:
    """Returns whether a column is given as a number, such as "0" or "-1"."""
    return re.fullmatch(r"-?\d+", column) is not None


def stated_header(config: "ColumnConfig", columns: "Iterable[str | None]") -> bool | None:
    """Returns whether the flags state that a table has a header; None if they do not state it.

    `columns` are the values of the flags that give columns; a name implies a header.
    """
    if config.header != "auto":
        return config.header == "yes"
    return any(column is not None and not is_number(column) for column in columns) or None


def check_column_count(records: "Records", needed: int) -> None:
    """Raises UserError if a table has fewer than `needed` columns."""
    if records.width is not None and records.width < needed:
        raise UserError(
            f"{records.name} has {count_text(records.width, 'column')} in its first row, but "
            f"{needed} are needed. Columns are separated by tabs in .tsv and .txt, by commas, "
            f"semicolons or tabs in .csv."
        )


def checked_columns(
    records: "Records", used: "Sequence[str | int]", allow_extra: bool = True, **fields: "Any"
) -> Columns:
    """Returns Columns with the widths that rows must have.

    Args:
        records: the records of a file.
        used: all columns to read.
        allow_extra: whether rows may have more cells than the first row; ignored if there is a
            header or a column is counted from the right.
        **fields: the fields of Columns other than the widths.
    """
    width = records.width
    places = used if width is None else [column % width for column in used]
    if len(set(places)) < len(used):
        raise UserError(
            f"two of text, second text, choices and label are the same column of {records.name}. "
            f"Name a different column for each with --text_column, --label_column and so on."
        )
    if width is not None:
        allow_extra = allow_extra and records.names is None and min(used) >= 0
        fields["exact_width"] = None if allow_extra else width
        fields["min_width"] = max(places) + 1
    return Columns(**fields)


def count_text(number: int, noun: str) -> str:
    """Returns a number with its noun, such as "1 column" or "2 columns"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def split_flag(columns: str | None) -> list[str]:
    """Returns the columns that a comma-separated flag names; quotes are as in CSV."""
    cells = next(csv.reader([columns or ""], skipinitialspace=True), [])
    return [cell.strip() for cell in cells if cell.strip()]


def to_flag(columns: "str | Sequence[str | int] | None") -> str | None:
    """Returns columns as the value of a flag, as `split_flag` reads it; keeps a str and None."""
    if columns is None or isinstance(columns, str):
        return columns
    return ",".join('"' + str(column).replace('"', '""') + '"' for column in columns)


def column_of_flag(records: "Records", flag: str, column: str | None) -> str | int | None:
    """Returns the key or index of the column that a flag names, or None if `column` is None.

    A column is a name or a number; negative numbers count from the right.
    """
    return None if column is None else _column(records, flag, column)


def _column(records, flag, column):
    is_key = records.width is None and column in records.names
    if is_number(column) and not is_key:
        return _column_by_number(records, flag, int(column))
    return _column_by_name(records, flag, column)


def find_column(
    records: "Records", flag: str, column: str | None, defaults: Sequence[str], place: int = 0
) -> str | int:
    """Returns the key or index of a column: by the value of its flag, else by default names.

    The default names are in lower case, in the order in which they are tried. Without a header, the
    default is the column `place`.
    """
    names = records.names
    if column is not None:
        return _column(records, flag, column)
    if names is None:
        return place
    lower = [name.lower() for name in names]
    for default in defaults:
        if default in lower:
            return _column_by_name(records, flag, default)
    raise UserError(
        f"{records.name} has no column named {', '.join(defaults)}; it has "
        f"{quote_names(names)}. Name the one to read with --{flag}."
    )


def _column_by_number(records, flag, number):
    width = records.width
    if width is None:
        raise UserError(
            f"{records.name} has keys, not columns, so --{flag} must be one of "
            f"{quote_names(records.names)}; got {number}."
        )
    if not -width <= number < width:
        raise UserError(
            f"{records.name} has {count_text(width, 'column')} in its first row, so --{flag} must "
            f"be in [{-width}, {width - 1}]; got {number}. Columns are separated by tabs in .tsv "
            f"and .txt, by commas, semicolons or tabs in .csv."
        )
    return number


def _column_by_name(records, flag, column):
    name, names = records.name, records.names
    if names is None:
        raise UserError(
            f"{name} is read without a header, so --{flag} must be a number (0 is the first "
            f"column, -1 the last); got {column!r}. If its first row is a header, add --header=yes."
        )
    places = [i for i, other in enumerate(names) if other == column]
    places = places or [i for i, n in enumerate(names) if n.lower() == column.lower()]
    if len(places) > 1:
        raise UserError(
            f"{name} has {len(places)} columns named {column!r}. Give --{flag} as a number: "
            f"one of {', '.join(map(str, places))}."
        )
    if not places:
        raise UserError(f"{name} has no column {column!r} (--{flag}); it has {quote_names(names)}.")
    return names[places[0]] if records.width is None else places[0]


def quote_names(names: "Iterable[str]") -> str:
    """Returns names for a message: at most 20, each shortened after 40 characters."""
    names = list(names)
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:20]]
    return ", ".join(shown) + (", ..." if len(names) > 20 else "")
