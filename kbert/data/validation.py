"""Checks of the values of a record: each returns the value to use, or raises BadExample."""

import math
from typing import TYPE_CHECKING

from kbert.data.columns import count
from kbert.data.records import BadExample, is_utf8, shown

if TYPE_CHECKING:
    from kbert.data.columns import Columns
    from kbert.data.records import Record


def part(record: "Record", key: str | int) -> object:
    """Returns a row's cell in a column, or an object's value of a key."""
    if isinstance(record, dict) and key not in record:
        raise BadExample(f"there is no key {key!r}; the keys are {', '.join(map(repr, record))}")
    return record[key]


def text(value: object, what: str) -> str:
    """Returns a str that is not blank. `what` names it in messages."""
    if not isinstance(value, str):
        raise BadExample(f"{what} must be a string; got {shown(value)}")
    if not value.strip():
        raise BadExample(f"{what} is empty")
    if not is_utf8(value):  # JSON can write them: "\\ud800"
        raise BadExample(f"{what} has an unpaired surrogate, which is not a character")
    return value


def check_width(row: "Record", columns: "Columns") -> None:
    """Raises BadExample if a row's number of cells does not fit `kbert.data.columns.Columns`."""
    expected_width = columns.exact_width
    if expected_width is not None and len(row) != expected_width:
        raise BadExample(
            f"the row has {count(len(row), 'column')}; the first row has {expected_width}"
        )
    if len(row) < columns.least_width:
        raise BadExample(
            f"the row has {count(len(row), 'column')}; {columns.least_width} are needed"
        )


def label_name(value: object) -> str:
    """Returns a label as text: 3 becomes "3", True becomes "true" as in JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value != value or value == "":
        raise BadExample("the label is empty")
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise BadExample(f"the label must be a string or a number; got {shown(value)}")
    return text(value, "the label").strip()


def label_tuple(value: object) -> tuple[str, ...]:
    """Returns labels as text, from a list, or a cell like "a,b" or "a|b"; "" has no labels."""
    if not isinstance(value, list):
        cell = "" if value is None or str(value).strip() == "" else label_name(value)
        value = cell.split("|" if "|" in cell else ",") if cell else []
    return tuple(dict.fromkeys(map(label_name, value)))


def target(value: object, where: str) -> float:
    """Returns a label as a finite number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadExample("the label is empty")
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        header = "; if this is a header, add --header=yes" if where.endswith(", line 1") else ""
        raise BadExample(f"the label must be a number; got {shown(value)}{header}") from None
    if not math.isfinite(number):
        raise BadExample(f"the label must be a finite number; got {number}")
    return number
