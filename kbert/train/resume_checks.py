"""Checks and reports of settings that changed since a run was stopped."""

import dataclasses

from kbert.errors import UserError
from kbert.utils.logging import log

# These settings only affect the start of a run; a resumed run reads the result from its checkpoint.
_IN_CHECKPOINT = ("init_from", "vocab_file", "vocab_size")


def check_fixed(config, names, state, path):
    """Checks that no setting that affects results has changed.

    Args:
        config: settings. names: of the fixed settings. state: of the checkpoint at `path`.

    Raises:
        UserError: one of them has changed.
    """
    for name in names:
        now, before = getattr(config, name), state["settings"][name]
        if now != before:
            raise UserError(
                f"{name} is {now} now, but {path} was written with {before}. Go on with the "
                f"old value, or start another run: --init_from={path} --output_dir=ANOTHER."
            )


def report_changes(config, identity, state, complete=False):
    """Logs changed settings, and settings that have no effect on a resumed run.

    Args:
        config: settings. identity: current training data, see `Workload.identity`.
        state: of the checkpoint. complete: whether the run has no steps left.
    """
    current = dataclasses.asdict(config)
    for name, value in state["settings"].items():
        if name not in current or current[name] == value:
            continue
        if name in _IN_CHECKPOINT:
            if current[name] is not None:
                log(f"note: --{name} has no effect: the run goes on from its own checkpoint")
        elif complete:
            log(f"note: --{name} has no effect: the run is complete, with {value}")
        else:
            log(f"note: --{name} is {current[name]} now; before the stop it was {value}")
    if identity["corpus"] != state["data"]["corpus"]:
        log("note: the text has changed since the stop; from here on other examples are seen")
