"""Learning curves: plots the metrics of `metrics.jsonl` over the steps."""

import json
import os
from collections.abc import Mapping, Sequence

from kbert.utils import atomic

_COLUMNS = 3
_WIDTH, _HEIGHT = 4.2, 2.7  # of a panel, in inches
# These metrics have no panel: speed, skipped steps, the loss scale, and the unigram entropy, which
# is a line in the panel of mlm_loss.
_OMITTED = ("tokens_per_second", "input_wait", "skipped_steps", "loss_scale", "unigram_entropy")
_LOGARITHMIC = ("mlm_perplexity", "gradient_norm")


def read_curves(
    path: str | os.PathLike[str],
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Reads the curves of a `metrics.jsonl`.

    Returns:
        dict of metric name without `eval_` -> dict of "training" or "evaluation", if the metric has
        such values -> list of (step, value) in the order of the file, without non-finite values.
    """
    curves = {}
    with open(path, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for name, value in row.items():
                kind, plain = (
                    ("evaluation", name[5:]) if name[:5] == "eval_" else ("training", name)
                )
                if plain != "step" and value is not None:
                    curves.setdefault(plain, {}).setdefault(kind, []).append((row["step"], value))
    return curves


def plot_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
) -> None:
    """Plots curves to a PNG file: losses, then other metrics, gradient norm and learning rate last.

    Args:
        path: path of the PNG file, which is written atomically; its folder must exist.
        curves: as returned by `read_curves`; nothing is written if no curve has two points.
    """
    names = [name for name in curves if name not in _OMITTED]
    if all(len(points) < 2 for name in names for points in curves[name].values()):
        return
    from matplotlib.figure import Figure

    names.sort(key=_sort_key)
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    width, height = _WIDTH * columns, _HEIGHT * rows
    figure = Figure(figsize=(width, height), dpi=100)
    # Fixed margins for labels, in inches: an automatic layout takes as long as the drawing itself.
    edges = {"left": 0.6 / width, "right": 1 - 0.1 / width, "top": 1 - 0.3 / height}
    gaps = {"bottom": 0.5 / height, "wspace": 0.2, "hspace": 0.3}
    figure.subplots_adjust(**edges, **gaps)
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for kind, color, marker in (("training", "C0", ""), ("evaluation", "C1", "o")):
            if points := curves[name].get(kind):
                marker = marker or ("." if len(points) == 1 else "")
                axes.plot(
                    *zip(*points, strict=True), color, marker=marker, ms=3, lw=1.2, label=kind
                )
        axes.set_title(name, fontsize=10, loc="left", parse_math=False)
        if name == "mlm_loss" and "unigram_entropy" in curves:
            (_, entropy) = curves["unigram_entropy"]["evaluation"][-1]
            axes.axhline(entropy, color="gray", ls="--", lw=1, label="unigram entropy")
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.3)
        if name in _LOGARITHMIC and all(y > 0 for line in curves[name].values() for _, y in line):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        if name == "learning_rate":
            axes.yaxis.set_major_formatter("{x:.1e}")
        if len(axes.lines) > 1:
            axes.legend(fontsize=8, frameon=False)
        if number >= len(names) - columns:
            axes.set_xlabel("step", fontsize=8)
    with atomic.file(path) as scratch:
        figure.savefig(scratch, format="png")


def _sort_key(name):
    """Returns the sort key of a metric: losses, then others, then metrics of the optimizer."""
    of_optimizer = ("gradient_norm", "learning_rate")
    if name in of_optimizer:
        return 2 + of_optimizer.index(name)
    return 0 if name.endswith("loss") else 1
