"""Command-line flags made from a config dataclass."""

import dataclasses

from absl import flags

from kbert.config import setting_type

flags.disclaim_key_flags()  # so that --help shows the flags as those of the program


def define(config_class):
    """Defines one absl flag per field of `config_class`, with the field's default and help."""
    for field in dataclasses.fields(config_class):
        kind, _ = setting_type(field)
        name, default, help = field.name, field.default, field.metadata["help"]
        if field.metadata["choices"]:
            flags.DEFINE_enum(name, default, list(field.metadata["choices"]), help)
        elif kind is bool:
            flags.DEFINE_bool(name, default, help)
        elif kind is int:
            flags.DEFINE_integer(name, default, help)
        elif kind is float:
            flags.DEFINE_float(name, default, help)
        else:
            flags.DEFINE_string(name, default, help)


def read(config_class):
    """A `config_class` with the values of the parsed flags.

    Raises:
        UserError: a value is out of range.
    """
    names = [field.name for field in dataclasses.fields(config_class)]
    return config_class(**{name: flags.FLAGS[name].value for name in names})


def as_flagfile(config, header):
    """Text of a flagfile that gives `config` back; `header` becomes comment lines."""
    lines = [f"# {line}" for line in header.splitlines()]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool):
            value = str(value).lower()
        if value is not None:
            lines.append(f"--{field.name}={value}")
    return "\n".join(lines) + "\n"


def as_dict(config):
    """The fields of `config` as a dict that JSON can hold."""
    return dataclasses.asdict(config)
