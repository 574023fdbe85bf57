"""Defines command-line flags for the fields of a config dataclass, and reads and writes them."""

import dataclasses
import sys
import textwrap
from typing import TYPE_CHECKING, TypeVar

from absl import flags

from kbert.errors import UserError
from kbert.fields import is_text, range_text, setting_type

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Config = TypeVar("_Config", bound="DataclassInstance")
flags.disclaim_key_flags()  # so that --help attributes the flags to the program
_DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}


def define(
    config_class: "type[DataclassInstance]", base: "type[DataclassInstance] | None" = None
) -> None:
    """Defines an absl flag for each field of `config_class`, with its default, help and range.

    The fields of `base` are skipped, because their flags exist already.
    """
    defined = {field.name for field in dataclasses.fields(base)} if base else ()
    for field in (f for f in dataclasses.fields(config_class) if f.name not in defined):
        kind, _ = setting_type(field)
        name, default, help = field.name, field.default, field.metadata["help"]
        if limits := range_text(field.metadata["limits"]):
            help = f"{help} ({limits})"
        if field.metadata["choices"]:
            flags.DEFINE_enum(name, default, list(field.metadata["choices"]), help)
        else:
            _DEFINE.get(kind, flags.DEFINE_string)(name, default, help)
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])  # --help


def help_text(config_class: "type[DataclassInstance]") -> str:
    """Returns the text of --help: the program's docstring, then required, common, other flags."""
    lines = [sys.modules["__main__"].__doc__.strip()]
    group_of = {field.name: field.metadata["group"] for field in dataclasses.fields(config_class)}
    own_flags = flags.FLAGS.get_key_flags_for_module("__main__")
    for group in ("required", "common", "more"):
        of_group = [flag for flag in own_flags if group_of.get(flag.name, "common") == group]
        if of_group:
            lines += ["", f"{group.capitalize()}:"]
            lines += [line for flag in of_group for line in _flag_help(flag)]
    return "\n".join([*lines, "", "--flagfile=FILE reads flags from a file, one per line.", ""])


def _flag_help(flag):
    """Returns the lines of --help for one flag."""
    kind, help = flag.flag_type(), flag.help
    if kind == "bool":
        name = f"--[no]{flag.name}"
    elif kind == "string enum":
        choices = "|".join(flag.parser.enum_values)
        name, help = f"--{flag.name}={choices}", help.removeprefix(f"<{choices}>: ")
    else:
        name = f"--{flag.name}={({'int': 'INTEGER', 'float': 'NUMBER'}).get(kind, 'TEXT')}"
    if flag.default not in (None, "") and flag.default is not False:
        help += f" [default: {str(flag.default).lower() if kind == 'bool' else flag.default}]"
    return [
        f"  {name}",
        *textwrap.wrap(help, 96, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def read(config_class: type[_Config]) -> _Config:
    """Returns an instance of `config_class` with the values of the parsed flags."""
    names = [field.name for field in dataclasses.fields(config_class)]
    return config_class(**{name: flags.FLAGS[name].value for name in names})


def as_flagfile(config: "DataclassInstance", header: str) -> str:
    """Returns the text of a flagfile that reproduces `config`; `header` becomes comment lines."""
    lines = [f"# {line}\n" for line in header.splitlines()]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(flag_line(field.name, value))
    return "".join(lines)


def flag_line(name: str, value: str | bool | float) -> str:
    """Returns the line of a flagfile that sets a flag to a value."""
    value = str(value).lower() if isinstance(value, bool) else str(value)
    if not is_text(value) or value != value.rstrip() or "\n" in value or "\r" in value:
        raise UserError(
            f"--{name} must be one line of UTF-8 without trailing white space, because run.flags "
            f"cannot store other values; got {value!r}."
        )
    return f"--{name}={value}\n"
