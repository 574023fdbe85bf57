"""Cross-validation: each run trains without one fold of the examples and is scored on it."""

import dataclasses
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from kbert.errors import UserError
from kbert.utils import atomic, storage
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.settings import FinetuneConfig

RESULT_FILE = "folds.json"
_Config = TypeVar("_Config", bound="FinetuneConfig")


def cross_validate(
    config: _Config,
    output_dir: str | os.PathLike[str],
    run: Callable[[_Config, str | os.PathLike[str]], dict[str, Any]],
) -> dict[str, Any]:
    """Trains one run; or one run for each fold, if `folds` is set and `fold` is not.

    After the last fold, prints a table of the mean scores and writes it to `OUTPUT_DIR/folds.json`.
    Complete folds are not trained again, only scored.

    Args:
        output_dir: folder of the run, or parent folder of `fold_1`, `fold_2`, ...
        run: function of the settings and the folder of a run; returns its results.

    Returns:
        The results of `run`; or, for all folds, the mean and the sample standard deviation of each
        score that is a float in every fold: {"test": {name: {"mean": float, "std": float}}}, and
        the same for "eval" if there are evaluation examples. A dry run returns the results of the
        first fold.

    Raises:
        UserError: `distribution` is multi_worker, where a process can train only one run.
    """
    if not config.folds or config.fold:
        return run(config, output_dir)
    if config.distribution == "multi_worker":
        raise UserError(
            "--folds does not support --distribution=multi_worker. Start a run for each --fold, "
            "with its own --output_dir."
        )
    results = []
    for fold in range(1, config.folds + 1):
        log(f"fold {fold} of {config.folds}")
        folder = f"{str(output_dir).rstrip('/')}/fold_{fold}"
        result = run(dataclasses.replace(config, fold=fold), folder)
        if not isinstance(result.get("test"), dict):  # a dry run, or the run was stopped
            return result
        results.append(result)
    scores = _means(results)
    with storage.staging_folder(output_dir) as staging:
        atomic.write_json(pathlib.Path(staging) / RESULT_FILE, scores)
    for line in _table(scores, config.folds):
        log(line)
    return scores


def _means(results):
    """Returns the means and sample standard deviations of the float scores that all folds have."""
    means = {}
    for part in results[0]:
        for name, first in results[0][part].items():
            values = [result[part].get(name) for result in results]
            if isinstance(first, float) and None not in values:
                mean, std = statistics.fmean(values), statistics.stdev(values)
                means.setdefault(part, {})[name] = {"mean": mean, "std": std}
    return means


def _table(scores, folds):
    for part, rows in scores.items():
        yield f"{part} scores of {folds} folds: mean and standard deviation"
        for name, score in rows.items():
            yield f"  {name:20} {score['mean']:10.4f} {score['std']:10.4f}"
