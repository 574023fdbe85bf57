"""Checks of the names of tasks and methods, without importing TensorFlow."""

import importlib.metadata
from collections.abc import Iterable

from kbert.errors import UserError

BUILT_IN = (
    *("classify", "pair", "regress", "multilabel", "tag", "qa", "choice", "embed", "rerank"),
)
ENTRY_POINTS = "kbert.tasks"  # entry-point group of installed packages with tasks


def check_task_name(name: str | None, names: Iterable[str] = ()) -> None:
    """Raises UserError if --task is missing or not in `names`.

    Without `names`, these are the names of the built-in and installed tasks.
    """
    installed = (point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))
    names = list(names) or [*BUILT_IN, *installed]
    if not name:
        raise UserError(f"--task is missing: one of {', '.join(names)}.")
    if name not in names:
        raise UserError(
            f"task must be one of {', '.join(names)}; got {name!r}. If this is your own task, pass "
            f"its module as --task_module."
        )


def all_built_in(task_module: str | None) -> bool:
    """Returns whether there is neither a --task_module nor an installed package with tasks."""
    return not task_module and not importlib.metadata.entry_points(group=ENTRY_POINTS)


def check_method(method: str | None, methods: Iterable[str]) -> None:
    """Checks the name of a prediction method; None is accepted.

    Args:
        method: value of --method.
        methods: the known names.

    Raises:
        UserError: the name is unknown.
    """
    if method is not None and method not in methods:
        raise UserError(
            f"method must be one of {', '.join(methods)}; got {method!r}. If it belongs to your "
            f"own task, pass its module as --task_module."
        )
