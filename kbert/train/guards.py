"""What a run guards itself against: stops, batches that are too large, settings that changed."""

import contextlib
import signal
import threading

from kbert import flags
from kbert.errors import UserError
from kbert.train.report import say

# Settings of the start of a run; one that goes on has what came of them in its checkpoint.
_IN_CHECKPOINT = ("init_from", "vocab_file", "vocab_size")


class StopRequest:
    """Whether the run was asked to stop."""

    received = False


@contextlib.contextmanager
def stop_requests():
    """Makes Ctrl-C and SIGTERM a request to save and stop; a second one stops at once."""
    stop = StopRequest()
    before = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number, frame):
        stop.received = True
        restore()
        say("stopping: saving first")

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the caller's
        return
    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


def smaller_slices(config, replicas):
    """What to change when a replica's slice of the batch does not fit into its memory, in words.

    Args:
        config: TrainingConfig. replicas: int.
    """
    share, now = config.global_batch_size // replicas, config.accumulation_steps
    more = next((n for n in range(now + 1, share + 1) if share % n == 0), None)
    what = "Slices are single examples already"
    if more:
        what = f"Take --accumulation_steps={more}, which computes the same in smaller slices"
    return what if config.remat else f"{what}; --remat saves memory, too"


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
        config: settings. identity: what the run learns from now, `kbert.train.loop.Run.identity`.
        state: of the checkpoint.
    """
    current = flags.as_dict(config)
    for name, value in state["settings"].items():
        if name not in current or current[name] == value:
            continue
        if name not in _IN_CHECKPOINT:
            say(f"note: --{name} is {current[name]} now; before the stop it was {value}")
        elif current[name] is not None:
            say(f"note: --{name} has no effect: the run goes on from its own checkpoint")
    if identity["corpus"] != state["data"]["corpus"]:
        say("note: the text has changed since the stop; from here on other examples are seen")
