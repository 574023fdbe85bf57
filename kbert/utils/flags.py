"""Command-line flags made from a config dataclass."""

import dataclasses
import sys
import textwrap

from absl import flags

from kbert.config import is_text, range_text, setting_type
from kbert.errors import UserError

flags.disclaim_key_flags()  # so that --help shows the flags as those of the program
_DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}


def define(config_class):
    """Defines one absl flag per field of `config_class`, with its default, help and range."""
    for field in dataclasses.fields(config_class):
        kind, _ = setting_type(field)
        name, default, help = field.name, field.default, field.metadata["help"]
        if limits := range_text(field.metadata["limits"]):
            help = f"{help} ({limits})"
        if field.metadata["choices"]:
            flags.DEFINE_enum(name, default, list(field.metadata["choices"]), help)
        else:
            _DEFINE.get(kind, flags.DEFINE_string)(name, default, help)


def help_text(config_class):
    """The text of --help: the required flags of a program, the common ones, then all others."""
    lines = [sys.modules["__main__"].__doc__.strip()]
    group_of = {field.name: field.metadata["group"] for field in dataclasses.fields(config_class)}
    own_flags = flags.FLAGS.get_key_flags_for_module("__main__")
    for group in ("required", "common", "more"):
        of_group = [flag for flag in own_flags if group_of.get(flag.name, "common") == group]
        if of_group:
            lines += ["", f"{group.capitalize()}:"]
            lines += [line for flag in of_group for line in _help_of(flag)]
    return "\n".join([*lines, "", "--flagfile=FILE reads flags from a file, one per line.", ""])


def _help_of(flag):
    """The lines of a flag."""
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


def read(config_class):
    """A `config_class` with the values of the parsed flags.

    Raises:
        UserError: a value is out of range.
    """
    names = [field.name for field in dataclasses.fields(config_class)]
    return config_class(**{name: flags.FLAGS[name].value for name in names})


def as_flagfile(config, header):
    """Text of a flagfile that gives `config` back; `header` becomes comment lines.

    Raises:
        UserError: a value that no flagfile can hold.
    """
    lines = [f"# {line}\n" for line in header.splitlines()]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(as_line(field.name, value))
    return "".join(lines)


def as_line(name, value):
    """The line of a flagfile that gives a flag this value.

    Raises:
        UserError: no line can: of text, absl cuts white space off its end.
    """
    value = str(value).lower() if isinstance(value, bool) else str(value)
    if not is_text(value) or value != value.rstrip() or "\n" in value or "\r" in value:
        raise UserError(
            f"--{name} must be a line of UTF-8 without white space at its end, or the run could "
            f"not be replayed; got {value!r}."
        )
    return f"--{name}={value}\n"
