"""PNG plots of confusion matrices and attention.

Figures are created without pyplot, so that the matplotlib state of a notebook or program does not
change and no display is needed.
"""

import os
from collections.abc import Sequence

import numpy as np

MAX_LABEL_LENGTH = 28  # characters; longer names are shortened in the middle
MAX_CLASSES_WITH_NUMBERS = 40  # with more classes, the cells of a confusion matrix have no numbers
MAX_CLASSES = 200  # with more classes, no confusion matrix is drawn
MAX_LABELS = 128  # with more tokens, only some rows of a heat map have labels
MIN_MAP_PIXELS = 120  # minimum width of a heat map in a grid
MAX_MAP_TOKENS = 160  # maps of more tokens are max-pooled in a grid
TOKEN_PIXELS = 10  # height of a token's name beside a map in a grid
MAX_GRID_PIXELS = 2600  # maximum width and height of a grid enlarged to make room for all names
DPI = 100
FONT = "DejaVu Sans"  # included in matplotlib


def plot_confusion_matrix(
    path: str | os.PathLike[str],
    labels: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    names: Sequence[str],
) -> None:
    """Writes a PNG with the counts and row fractions: rows are true classes, columns predictions.

    Args:
        path: path of the PNG file; its folder must exist.
        labels, predictions: (N,) int, class indices.
        names: names of the C classes by index; nothing is written if there are more than 200.
    """
    if len(names) > MAX_CLASSES:
        return
    names, families, note = plot_labels(names)
    C = len(names)
    counts = np.zeros((C, C), np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with_numbers = C <= MAX_CLASSES_WITH_NUMBERS
    cell = np.interp(C, (2, 10), (1.0, 0.6)) if with_numbers else 0.2  # inches
    size = 10 if C <= 10 else 8  # points
    shown = counts > (0 if C > 10 else -1)  # hides zeros in large matrices
    figure, axes = _figure(cell * C, cell * C)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if with_numbers:
        for row, column in np.argwhere(shown):
            count, share = counts[row, column], shares[row, column]
            axes.text(
                column,
                row,
                f"{count}\n{share:.0%}" if count else "0",
                ha="center",
                va="center",
                fontsize=size if count < 10000 else size - 2,
                color="white" if share > 0.5 else "black" if count else "gray",
            )
    _label_axes(axes, names, families, size, cell, "true", "predicted")
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    _title(axes, f"{counts.sum():,} examples, accuracy {accuracy:.4f}", note)
    _colorbar(figure, image, "share of the row")
    _save(figure, path)


def plot_attention(
    path: str | os.PathLike[str], tokens: Sequence[str], weights: np.ndarray, title: str
) -> None:
    """Writes a PNG of one head's attention: row i shows the tokens that token i attends to.

    Args:
        path: path of the PNG file; its folder must exist.
        tokens: L strings. With more than 128 tokens, only some rows and columns have labels.
        weights: (L, L), rows sum to 1.
        title: title of the plot.
    """
    tokens, families, note = plot_labels(tokens)
    L = len(tokens)
    step = -(-L // MAX_LABELS)
    side = max(3.0, 0.17 * L / step)  # inches
    figure, axes = _figure(side, side)
    image = axes.imshow(weights, cmap="Blues", vmin=0, interpolation="nearest")
    _label_axes(axes, tokens, families, 8, step * side / L, "query token", "key token", step)
    _title(axes, title, note)
    _colorbar(figure, image, "attention weight")
    _save(figure, path)


def plot_attention_grid(
    path: str | os.PathLike[str],
    tokens: Sequence[str],
    weights: np.ndarray,
    title: str,
    layers: Sequence[str],
    heads: Sequence[str],
) -> None:
    """Writes a PNG of many heads as small heat maps, one row per layer.

    The tokens label the left and bottom edges of the grid; if the maps are too small, only some of
    the tokens do.

    Args:
        path: path of the PNG file; its folder must exist.
        tokens: L strings.
        weights: (N, H, L, L); rows sum to 1, or to 0 for heads that a layer does not have.
        title: title of the plot.
        layers, heads: names of the N rows and of the H columns.
    """
    N, H, L, _ = weights.shape
    if L > MAX_MAP_TOKENS:
        maps, cell = _max_pool(weights, -(-L // MAX_MAP_TOKENS)), 1 / -(-L // MAX_MAP_TOKENS)
    else:
        cell = -(-MIN_MAP_PIXELS // L)  # pixels per token
        if cell < TOKEN_PIXELS and max(N, H) * L * TOKEN_PIXELS <= MAX_GRID_PIXELS:
            cell = TOKEN_PIXELS
        maps = np.kron(weights, np.ones([cell] * 2, np.float32))
    side, gap = maps.shape[-1], 8  # pixels
    # Each map is scaled separately; otherwise heads with uniform attention would be blank.
    maps = maps / np.maximum(maps.max(axis=(2, 3), keepdims=True), 1e-6)  # 0 for missing heads
    maps = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    grid = maps.swapaxes(1, 2).reshape(N * (side + gap), -1)[:-gap, :-gap]
    figure, axes = _figure(grid.shape[1] / DPI, grid.shape[0] / DPI)
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelright=True, labelleft=False)
    axes.tick_params(length=0, which="minor")
    # The tick of a token in the middle of a map coincides with the tick of the map's name.
    axes.xaxis.remove_overlapping_locs = axes.yaxis.remove_overlapping_locs = False
    middle = (side - 1) / 2
    axes.set_xticks(middle + (side + gap) * np.arange(H), heads, fontsize=9)
    axes.set_yticks(middle + (side + gap) * np.arange(N), layers, fontsize=9)
    tokens, families, missing = plot_labels(tokens)
    shown = np.arange(0, L, int(np.ceil(TOKEN_PIXELS / cell)))
    style = {"fontsize": 6.5, "fontfamily": families, "parse_math": False, "minor": True}
    names, places = [tokens[i] for i in shown], (shown + 0.5) * cell - 0.5
    for count, set_ticks, turn in ((H, axes.set_xticks, 90), (N, axes.set_yticks, 0)):
        starts = (side + gap) * np.arange(count)[:, None]
        set_ticks((starts + places).ravel(), names * count, rotation=turn, **style)
    note = "rows: query tokens, columns: key tokens; each map is scaled to its own largest weight"
    _title(axes, title, f"{note}\n{missing}" if missing else note)
    _save(figure, path)


def plot_labels(names: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """Converts names to labels of a plot.

    Long names are shortened in the middle. A name with a character that no installed font supports
    is replaced by its index in brackets, because matplotlib would draw empty boxes.

    Returns:
        The labels, the font families to use, and a note about replaced names, or None.
    """
    missing, families = _fonts({char for name in names for char in name})
    labels, half = [], (MAX_LABEL_LENGTH - 1) // 2
    for number, name in enumerate(names):
        short = name if len(name) <= MAX_LABEL_LENGTH else f"{name[:half]}…{name[-half:]}"
        labels.append(f"[{number}]" if missing & set(name) else short)
    note = "[n] is number n, counted from 0: no installed font supports its name"
    return labels, families, note if missing else None


def _fonts(characters):
    """Returns the characters that no installed font supports, and font families for the others."""
    from matplotlib import font_manager

    def supported_characters(family, characters):
        path = font_manager.findfont(font_manager.FontProperties(family=family))
        try:
            return characters & {chr(code) for code in font_manager.get_font(path).get_charmap()}
        except (OSError, RuntimeError):  # a missing or damaged font
            return set()

    families = [FONT]
    missing = characters - supported_characters(FONT, characters)
    printable = {char for char in missing if char.isprintable()}
    if printable:
        # "Last Resort" has a placeholder box for every character.
        names = {font.name for font in font_manager.fontManager.ttflist}
        names = sorted(name for name in names if not name.startswith("Last Resort"))
        covered = {name: supported_characters(name, printable) for name in names}
        while any(missing & there for there in covered.values()):
            family = max(names, key=lambda name: len(missing & covered[name]))
            missing = missing - covered[family]
            families.append(family)
    return missing, families


def _figure(width, height):
    """Creates a figure with axes of the given size in inches; `_save` adds the margins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    return figure, figure.add_axes((0, 0, 1, 1))


def _label_axes(axes, names, families, size, cell, rows, columns, step=1):
    """Labels both axes; x labels are horizontal if they fit into a cell, `cell` inches wide."""
    places, names = range(0, len(names), step), names[::step]
    style = {"fontsize": size, "fontfamily": families, "parse_math": False}  # "$" may be a token
    ems = max(sum(1 if char > "\u2e80" else 0.65 for char in name) for name in names)
    axes.set_xticks(places, names, rotation=0 if ems * size / 72 < cell else 90, **style)
    axes.set_yticks(places, names, **style)
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)


def _title(axes, title, note):
    missing, families = _fonts(set(title))
    title = "".join("?" if char in missing else char for char in title)
    title = f"{title}\n{note}" if note else title
    axes.set_title(title, fontsize=10, fontfamily=families, parse_math=False, loc="left")


def _colorbar(figure, image, label):
    axes = figure.add_axes((1 + 0.2 / figure.get_figwidth(), 0, 0.15 / figure.get_figwidth(), 1))
    figure.colorbar(image, cax=axes, label=label)


def _max_pool(maps, size):
    """Returns maps, (N, H, L, L), max-pooled over squares of `size` by `size` tokens."""
    N, H, L, _ = maps.shape
    maps = np.pad(maps, ((0, 0), (0, 0), (0, -L % size), (0, -L % size)))
    side = maps.shape[-1] // size
    return maps.reshape(N, H, side, size, side, size).max(axis=(3, 5))


def _save(figure, path):
    figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.2)
