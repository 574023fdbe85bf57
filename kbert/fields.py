"""Fields of configurations: their help and constraints, checked by `check_settings`."""

import dataclasses
import math
import operator
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence

from kbert.errors import UserError

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = typing.TypeVar("_T")


def setting(
    default: _T,
    help: str,
    *,
    group: str = "more",
    choices: Sequence[str] | None = None,
    **limits: float,
) -> _T:
    """Returns a dataclass field with help text, and with constraints for `check_settings`.

    Args:
        default: default of the field and of its flag.
        help: help text of the flag.
        group: section of the flag in --help: "required", "common" or "more".
        choices: allowed values, or None for any.
        **limits: range of a number: `at_least`, `above`, `at_most`, `below`.
    """
    metadata = {"help": help, "group": group, "choices": choices, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


def common(default: _T, help: str, **options: typing.Any) -> _T:
    """Returns a `setting` that --help lists before most others."""
    return setting(default, help, group="common", **options)


def required(default: _T, help: str) -> _T:
    """Returns a `setting` that must be set; its default is empty."""
    return setting(default, help, group="required")


def setting_type(field: dataclasses.Field[object]) -> tuple[type, bool]:
    """Returns the type of a field without `| None` or parameters, and whether None is allowed."""
    if isinstance(field.type, types.UnionType):
        (kind,) = (t for t in typing.get_args(field.type) if t is not types.NoneType)
        return typing.get_origin(kind) or kind, True  # tuple of tuple[str, ...]
    return field.type, False


def is_text(value: object) -> bool:
    """Returns whether a value is a str that UTF-8 can encode; JSON may contain lone surrogates."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlist, _SHORT.maxtuple = 1, 200, 20, 20


def short_repr(value: object) -> str:
    """Returns a truncated repr of a value, for a message.

    The full repr is never built, because a short YAML file can expand to a huge value.
    """
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"


_COMPARISONS = {  # limit of a `setting` -> its symbol and function
    "at_least": (">=", operator.ge),
    "above": (">", operator.gt),
    "at_most": ("<=", operator.le),
    "below": ("<", operator.lt),
}


def range_text(limits: Mapping[str, float]) -> str:
    """Returns the limits of a `setting` as text, such as ">= 0 and < 1", or "" without limits."""
    return " and ".join(f"{_COMPARISONS[key][0]} {limit}" for key, limit in limits.items())


def shared_settings(
    config: "DataclassInstance", kind: "type[DataclassInstance]"
) -> dict[str, typing.Any]:
    """Returns a dict of the fields of the dataclass `kind` with their values in `config`."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}


def check_settings(config: "DataclassInstance") -> None:
    """Checks every field of a dataclass whose fields are `setting`s, as `checked_value` does.

    An int in a float field is replaced by a float.

    Raises:
        UserError: a field is invalid, or a required one is missing or empty.
    """
    for field in dataclasses.fields(config):
        value = checked_value(field, getattr(config, field.name))
        object.__setattr__(config, field.name, value)
    for field in dataclasses.fields(config):
        if field.metadata["group"] == "required" and not getattr(config, field.name):
            raise UserError(f"--{field.name} is missing: {field.metadata['help']}.")


def checked_value(field: "dataclasses.Field[typing.Any]", value: typing.Any) -> typing.Any:
    """Returns the value of a `setting` after checking it; converts an int to float if needed.

    Raises:
        UserError: the value has the wrong type, is out of range or is not one of the choices. The
            message names the field, the value and the allowed values.
    """
    kind, optional = setting_type(field)
    if value is None and optional:
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind:
        got = f"{short_repr(value)} ({type(value).__name__})"
        raise UserError(f"{field.name} must be {kind.__name__}; got {got}.")
    if kind is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{field.name} must fit into 64 bits; got {short_repr(value)}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{field.name} must be a finite number; got {value}.")
    choices, limits = field.metadata["choices"], field.metadata["limits"]
    if choices and value not in choices:
        raise UserError(f"{field.name} must be one of {', '.join(choices)}; got {value!r}.")
    if not all(_COMPARISONS[key][1](value, limit) for key, limit in limits.items()):
        hint = " Write 0.15 for 15 %." if kind is float and limits.get("below") == 1 else ""
        raise UserError(f"{field.name} must be {range_text(limits)}; got {value}.{hint}")
    return value
