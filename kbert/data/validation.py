"""Validates the values of a record: each function returns the value to use or raises BadExample."""

import ast
import contextlib
import json
import math
import re
from typing import TYPE_CHECKING

from kbert.data.column_profiles import is_numeric
from kbert.data.columns import count_text
from kbert.data.records import BadExample, value_text
from kbert.fields import is_text

if TYPE_CHECKING:
    from kbert.data.columns import Columns
    from kbert.data.records import Record

_TAGS = re.compile(r"(<[^<>]+>)+")  # tags of Stack Overflow: <java><android>
_CONTAINER = re.compile(r"(?s)\{.*|array\(.*|\(.*,.*\)")
_BITS = {"0", "1", "true", "false"}
_BYTES = re.compile(r"""(?s)b'.*'|b".*\"""")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def get_value(record: "Record", key: str | int) -> object:
    """Returns the cell of a row, or the value under a key of an object."""
    if isinstance(record, dict) and key not in record:
        raise BadExample(f"there is no key {key!r}; the keys are {', '.join(map(repr, record))}")
    return record[key]


def check_text(value: object, what: str) -> str:
    """Returns the value if it is a str that is not blank; `what` is its name in messages."""
    if not isinstance(value, str):
        raise BadExample(f"{what} must be a string; got {value_text(value)}")
    if not value.strip():
        raise BadExample(f"{what} is empty")
    if _BYTES.fullmatch(value):
        raise BadExample(
            f"{what} is a bytes object that str() converted in Python: {value_text(value)}"
        )
    if not is_text(value):  # JSON may contain surrogates: "\\ud800"
        raise BadExample(f"{what} has an unpaired surrogate, which is not a character")
    return value


def check_column_count(row: "Record", columns: "Columns") -> None:
    """Raises BadExample if a row has another number of cells than `columns` allows."""
    expected_width = columns.exact_width
    if expected_width is not None and len(row) != expected_width:
        raise BadExample(
            f"the row has {count_text(len(row), 'column')}; the first row has {expected_width}"
        )
    if len(row) < columns.min_width:
        raise BadExample(
            f"the row has {count_text(len(row), 'column')}; {columns.min_width} are needed"
        )


def label_name(value: object) -> str:
    """Returns a label as text: 3, 3.0 and "3.0" become "3"; True becomes "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value != value or value == "":
        raise BadExample("the label is empty")
    if isinstance(value, int | float):
        return normalize_label(str(value))
    if not isinstance(value, str):
        raise BadExample(f"the label must be a string or a number; got {value_text(value)}")
    return normalize_label(check_text(value, "the label").strip())


def normalize_label(name: str) -> str:
    """Returns the name of a label; a whole number loses its decimals: "1.0" becomes "1"."""
    is_whole = re.fullmatch(r"-?[0-9]{1,99}\.0*", name)
    return str(int(name.partition(".")[0])) if is_whole else name


def parse_class_label(value: object) -> str:
    """Returns the label of a single-label example as text; raises BadExample for a list."""
    name = label_name(value)
    is_list = name[0] + name[-1] == "[]" and re.search(r"""['"]|^\[[-\d., ]+\]$""", name)
    if is_list or _CONTAINER.fullmatch(name) or (_TAGS.fullmatch(name) and "><" in name):
        raise BadExample(f"the label {value_text(name)} is a list; lists need --task=multilabel")
    return name


def parse_label_list(value: object) -> tuple[str, ...]:
    """Returns the labels of a multilabel example as text, without duplicates.

    A list of only 0 and 1 (or false and true) keeps its duplicates, because it may have one number
    per label.

    Args:
        value: list; dict of label -> 0 or 1; {"choices": list}; a cell such as "a,b", "a|b" or
            "['a']"; or None or a blank cell (no labels).
    """
    value = _parse_object(value)
    if not isinstance(value, list):
        cell = "" if value is None or str(value).strip() == "" else label_name(value)
        value = parse_list(cell)
        if value is None:
            if _CONTAINER.fullmatch(cell):
                raise BadExample(
                    f"the labels must be a list such as ['a', 'b']; got {value_text(cell)}"
                )
            separator = next((mark for mark in "|;" if mark in cell), ",")
            value = cell.split(separator) if cell else []
    names = list(map(label_name, value))
    if {name.lower() for name in names} <= _BITS:
        return tuple(names)
    for name in names:
        if names.count(name) > 1 and is_numeric(name):
            raise BadExample(
                f"the labels have {name} twice; a list with a number for each label must have only "
                f"0 and 1: {value_text(value)}"
            )
    return tuple(dict.fromkeys(names))


def _parse_object(value):
    """Converts {"a": 1, "b": 0} or {"choices": ["a"]} to a list of labels.

    Also converts the text of such a dict in a cell; returns other values unchanged.
    """
    if isinstance(value, str) and value.strip()[:1] == "{":
        value = parse_literal(value.strip(), value)
        value = sorted(value, key=str) if isinstance(value, set) else value
    if not isinstance(value, dict):
        return value
    if value.keys() == {"choices"} and isinstance(value["choices"], list):
        return value["choices"]
    return [name for name, bit in value.items() if parse_bit(bit, name)]


def parse_list(cell: str) -> list[str] | None:
    """Returns the items of a list in Python, JSON or NumPy syntax, or of <a><b>; None otherwise."""
    brackets, quoted = cell[:1] + cell[-1:], _QUOTED.findall(cell)
    rest = _QUOTED.sub("", cell[1:-1]).strip(", \t\r\n")
    if _TAGS.fullmatch(cell):
        return re.findall("<([^<>]+)>", cell)
    if re.fullmatch(r"\([-\d. ]+,[-\d., ]*\)", cell):
        return [item.strip() for item in rest.split(",")]
    if brackets not in ("[]", "()", "{}") or (brackets != "[]" and (rest or not quoted)):
        return None
    if quoted and rest:
        raise BadExample(f"the labels must be a list such as ['a', 'b']; got {value_text(cell)}")
    if quoted:
        return [_parse_quoted(item) for item in quoted]
    are_numbers = all(re.fullmatch(r"-?[\d.]+", item) for item in rest.split())
    items = rest.split() if are_numbers and "," not in rest else rest.split(",")
    return [item.strip() for item in items if rest]


def _parse_quoted(item):
    if (name := parse_literal(item)) is None:
        raise BadExample(f"the label {value_text(item)} is not quoted as in JSON or Python")
    return name


def parse_literal(text: str, default: object = None) -> object:
    """Returns the value of a text in JSON or Python syntax; `default` for other texts."""
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return parse(text)
    return default


def parse_bit(value: object, name: str) -> bool:
    """Returns whether a value is 1 or true, rather than 0 or false; `name` is its column."""
    known = {"0": False, "1": True, "false": False, "true": True}
    text = normalize_label(str(value).strip().lower())
    if text not in known:
        raise BadExample(
            f"the column {name!r} must be 0 or 1 (or false or true); got {value_text(value)}"
        )
    return known[text]


def parse_number_label(value: object, where: str) -> float:
    """Returns a label as a finite number; `where` is the file and line of its example."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadExample("the label is empty")
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        header = "; if this is a header, add --header=yes" if where.endswith(", line 1") else ""
        raise BadExample(f"the label must be a number; got {value_text(value)}{header}") from None
    if not math.isfinite(number):
        raise BadExample(f"the label must be a finite number; got {number}")
    return number
