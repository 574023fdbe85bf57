"""Checks of the parts of a record: each returns what is used of it, or raises BadExample."""

import math

from kbert.data.columns import count
from kbert.data.records import BadExample, is_utf8, shown


def part(record, key):
    """What a row has in a column, or an object under a key."""
    if isinstance(record, dict) and key not in record:
        raise BadExample(f"there is no {key!r}; the keys are {', '.join(map(repr, record))}")
    return record[key]


def text(value, what):
    """A str with something in it. `what` names it in messages."""
    if not isinstance(value, str):
        raise BadExample(f"{what} must be a string; got {shown(value)}")
    if not value.strip():
        raise BadExample(f"{what} is empty")
    if not is_utf8(value):  # JSON can write them: "\\ud800"
        raise BadExample(f"{what} has half a surrogate pair, which is no character")
    return value


def check_width(row, columns):
    """Raises BadExample where a row has not the cells that `kbert.data.columns.Columns` tells."""
    expected_width = columns.exact_width
    if expected_width is not None and len(row) != expected_width:
        raise BadExample(
            f"the row has {count(len(row), 'column')}; the first row has {expected_width}"
        )
    if len(row) < columns.least_width:
        raise BadExample(
            f"the row has {count(len(row), 'column')}; {columns.least_width} are needed"
        )


def label_name(value):
    """A label as text: 3 is "3", True is "true" as in JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value != value or value == "":
        raise BadExample("the label is empty")
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise BadExample(f"the label must be a text or a number; got {shown(value)}")
    return text(value, "the label").strip()


def label_tuple(value):
    """Labels as a tuple of texts, from a list, or a cell like "a,b" or "a|b"; "" is no label."""
    if not isinstance(value, list):
        cell = "" if value is None or str(value).strip() == "" else label_name(value)
        value = cell.split("|" if "|" in cell else ",") if cell else []
    return tuple(dict.fromkeys(map(label_name, value)))


def target(value, where):
    """A label as a finite number."""
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
        raise BadExample(f"the label must be a finite number; got the target {number}")
    return number
