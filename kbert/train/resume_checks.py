"""What has changed since a run was stopped: what must not, and what is reported."""

from kbert.errors import UserError
from kbert.utils import flags
from kbert.utils.logging import log

# Settings of the start of a run; one that goes on has what came of them in its checkpoint.
_IN_CHECKPOINT = ("init_from", "vocab_file", "vocab_size")


def check_fixed(config, names, state, path):
    """Refuses to go on with settings that would make it another run.

    Args:
        config: settings. names: of those that are fixed. state: of the checkpoint at `path`.

    Raises:
        UserError: one of them has another value now.
    """
    for name in names:
        now, default = getattr(config, name), getattr(type(config), name)
        before = state["settings"].get(name, default)  # of an older checkpoint
        if now != before:
            raise UserError(
                f"{name} is {now} now, but {path} was written with {before}. Go on with the "
                f"old value, or start another run: --init_from={path} --output_dir=ANOTHER."
            )


def report_changes(config, identity, state):
    """Says what is another since the stop, or has no effect on a run that goes on.

    Args:
        config: settings. identity: of what the run learns from now, see `Workload.identity`.
        state: of the checkpoint.
    """
    current = flags.as_dict(config)
    for name, value in state["settings"].items():
        if name not in current or current[name] == value:
            continue
        if name not in _IN_CHECKPOINT:
            log(f"note: --{name} is {current[name]} now; before the stop it was {value}")
        elif current[name] is not None:
            log(f"note: --{name} has no effect: the run goes on from its own checkpoint")
    if identity["corpus"] != state["data"]["corpus"]:
        log("note: the text has changed since the stop; from here on other examples are seen")
