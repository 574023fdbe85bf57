"""Flags of a config, in a process that has those of others, too."""

import contextlib
import dataclasses

from absl import app
from absl import flags as absl_flags

from kbert.utils import flags


@contextlib.contextmanager
def defined_flags(config_class):
    """Defines the flags of a config, and forgets them again."""
    app.define_help_flags()
    flags.define(config_class)
    try:
        yield
    finally:
        for field in dataclasses.fields(config_class):
            delattr(absl_flags.FLAGS, field.name)
