"""Checks and reports which settings and data have changed since a run was stopped."""

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kbert.errors import UserError
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.settings import TrainingConfig

# These settings affect only the start of a run. A resumed run loads the weights and the vocabulary
# from its checkpoint.
_IN_CHECKPOINT = ("init_from", "vocab_file", "vocab_size")


def check_fixed(
    config: "TrainingConfig",
    names: Iterable[str],
    state: Mapping[str, Any],
    path: str | os.PathLike[str],
) -> None:
    """Raises UserError if a setting in `names` has changed since the checkpoint was written.

    A setting that the checkpoint's state lacks had its default value.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        now, before = getattr(config, name), (defaults | state["settings"])[name]
        if now != before:
            raise UserError(
                f"{name} is {now} now, but {path} was written with {before}. Resume with the "
                f"old value, or start a new run: --init_from={path} --output_dir=ANOTHER."
            )


def report_changes(
    config: "TrainingConfig",
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
    complete: bool = False,
    scoring_settings: Collection[str] = (),
) -> None:
    """Logs which settings and data have changed, and which changes have no effect.

    Args:
        identity: result of `Workload.identity` for the current data.
        state: state of the checkpoint that the run resumes from.
        complete: whether the run has no steps left.
        scoring_settings: names of the settings that also affect a complete run.
    """
    current = dataclasses.asdict(config)
    for name, value in state["settings"].items():
        if name not in current or current[name] == value:
            continue
        if name in _IN_CHECKPOINT:
            if current[name] is not None:
                log(f"note: --{name} has no effect: the run resumes from its own checkpoint")
        elif complete and name not in scoring_settings:
            log(f"note: --{name} has no effect: the run is complete and used {value}")
        else:
            log(f"note: --{name} is now {current[name]}; the checkpoint was written with {value}")
    if identity["corpus"] != state["data"]["corpus"]:
        effect = "is complete and not changed" if complete else "continues with other examples"
        log(f"note: the training data has changed; the run {effect}")
    if identity["held_out"] != state["data"]["held_out"]:
        reset, kept = "resetting the best checkpoint", "the weights were selected on other data"
        effect = kept if complete else reset
        log(f"note: the evaluation data has changed; {effect}")
