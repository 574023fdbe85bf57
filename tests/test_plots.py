"""Pictures: what is drawn, that it fits, and that no label turns into empty boxes."""

import itertools
import subprocess
import sys
import warnings

import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kbert.visualization import plots
from kbert.visualization.plots import (
    plot_attention,
    plot_attention_grid,
    plot_confusion_matrix,
    plot_labels,
)

NOWHERE = "\U000f1234"  # a character that no font has: private use


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved. Characters without a glyph, of which matplotlib warns, fail."""
    figures = []
    save = plots._save

    def kept(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield figures


def size_of(path):
    with PIL.Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def attention(*shape):
    weights = np.exp(2 * np.random.default_rng(0).normal(size=shape))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_confusion_matrix(drawn, tmp_path):
    labels, predictions = [0, 0, 0, 0, 1, 2, 2], [0, 0, 0, 2, 1, 1, 2]
    names = ["bad", "$so$ so", "good", "never"]
    plot_confusion_matrix(tmp_path / "a.png", labels, predictions, names)
    (axes, _) = drawn[0].axes
    cells = {tuple(map(int, text.get_position()[::-1])): text.get_text() for text in axes.texts}
    assert cells[0, 0] == "3\n75%" and cells[0, 2] == "1\n25%"  # row: true, column: predicted
    assert cells[2, 0] == "0" and cells[2, 1] == "1\n50%" and cells[3, 3] == "0"
    assert len(cells) == 16
    expected = [[0.75, 0, 0.25, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title(loc="left") == "7 examples, accuracy 0.7143"
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())
    assert size_of(tmp_path / "a.png")[0] > 300


@pytest.mark.parametrize(("C", "numbers"), [(2, True), (9, True), (30, True), (41, False)])
def test_any_number_of_classes(C, numbers, drawn, tmp_path):
    labels = np.arange(5 * C) % C
    predictions = np.where(np.arange(5 * C) % 7, labels, 0)
    plot_confusion_matrix(
        tmp_path / "a.png", labels, predictions, [f"a name of a class {i}" for i in range(C)]
    )
    axes = drawn[0].axes[0]
    cell = axes.get_window_extent().width / C  # pixels
    assert bool(axes.texts) == numbers
    renderer = FigureCanvasAgg(drawn[0]).get_renderer()
    assert all(text.get_window_extent(renderer).width < cell for text in axes.texts)
    assert all(text.get_fontsize() >= 8 for text in axes.texts)
    width, height = size_of(tmp_path / "a.png")
    assert cell * C < width < 3300 and cell * C < height < 3300
    # names of neighbours do not overlap
    boxes = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


def test_names_that_no_font_has_are_numbers_with_a_word(drawn, tmp_path):
    names = ["good", f"{NOWHERE}b", "so\nso"]
    plot_confusion_matrix(tmp_path / "a.png", [0, 1, 2], [0, 1, 1], names)
    axes = drawn[0].axes[0]
    assert ticks(axes.xaxis) == ["good", "[1]", "[2]"]
    assert axes.get_title(loc="left").endswith(
        "\n[n] is number n, counted from 0: no installed font supports its name"
    )


def test_names_in_chinese(drawn, tmp_path):
    """With a font for them they are drawn; without, they are numbers. `drawn` sees boxes."""
    plot_confusion_matrix(tmp_path / "a.png", [0, 1], [0, 1], ["体育", "财经"])
    labels = ticks(drawn[0].axes[0].xaxis)
    assert labels in (["体育", "财经"], ["[0]", "[1]"])


def test_another_font_is_found(drawn, tmp_path):
    names = ["\u210a", "a"]  # a script letter, which STIX has, and which comes with matplotlib
    labels, families, note = plot_labels(names)
    assert labels == names and families[0] == "DejaVu Sans" and len(families) == 2
    assert note is None
    plot_confusion_matrix(tmp_path / "a.png", [0, 1], [0, 1], names)


def test_long_names_keep_both_ends():
    labels, _, _ = plot_labels(["x" * 28, "begin" + "x" * 40 + "end"])
    assert labels[0] == "x" * 28
    assert len(labels[1]) == 27 and labels[1].startswith("begin") and labels[1].endswith("xend")


@pytest.mark.parametrize(("L", "labels"), [(1, 1), (17, 17), (128, 128), (300, 100)])
def test_attention_of_a_head(L, labels, drawn, tmp_path):
    tokens = [["[CLS]", "$", "##ing", NOWHERE][i % 4] for i in range(L)]
    weights = attention(L, L)
    plot_attention(tmp_path / "a.png", tokens, weights, f"layer 3 of {NOWHERE} $x$")
    axes = drawn[0].axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert len(ticks(axes.xaxis)) == len(ticks(axes.yaxis)) == labels
    assert ticks(axes.xaxis)[0] == "[CLS]"
    assert axes.get_title(loc="left").splitlines()[0] == "layer 3 of ? $x$"
    renderer = FigureCanvasAgg(drawn[0]).get_renderer()
    for which, side in (("xaxis", "width"), ("yaxis", "height")):
        shown = getattr(axes, which).get_ticklabels()
        boxes = [getattr(label.get_window_extent(renderer), side) for label in shown]
        assert max(boxes) <= getattr(axes.get_window_extent(), side) / labels
    assert 300 < max(size_of(tmp_path / "a.png")) < 2600


@pytest.mark.parametrize(
    ("N", "H", "L", "side", "step"),
    [(2, 3, 7, 126, 1), (2, 1, 15, 150, 1), (3, 1, 150, 150, 10), (1, 2, 325, 109, 30)],
)
def test_a_grid_of_heads(N, H, L, side, step, drawn, tmp_path):
    weights, tokens = attention(N, H, L, L), [f"t{i}" for i in range(L)]
    layers, heads = [f"layer {i}" for i in range(N)], [f"head {i}" for i in range(H)]
    plot_attention_grid(tmp_path / "a.png", tokens, weights, "model", layers, heads)
    axes = drawn[0].axes[0]
    assert ticks(axes.yaxis) == layers and ticks(axes.xaxis) == heads
    for axis, count in ((axes.xaxis, H), (axes.yaxis, N)):  # each token beside its row or column
        names = [label.get_text() for label in axis.get_minorticklabels()]
        assert names == tokens[::step] * count
        first, second = axis.get_minorticklocs()[:2]
        assert first == pytest.approx(side / L / 2 - 0.5, rel=0.01)
        assert second - first == pytest.approx(step * side / L, rel=0.01) and second - first >= 10
    grid = axes.images[0].get_array()
    assert grid.shape == (N * (side + 8) - 8, H * (side + 8) - 8)
    last = grid[-side:, -side:]
    if side >= L:
        expected = weights[-1, -1] / weights[-1, -1].max()
        np.testing.assert_allclose(last[:: side // L, :: side // L], expected, rtol=1e-6)
    else:  # three by three tokens; the last square has one of 325
        corner = weights[-1, -1, :3, :3].max() / weights[-1, -1].max()
        assert last[0, 0] == pytest.approx(corner, rel=1e-6) and last.max() == 1
    assert size_of(tmp_path / "a.png")[1] > N * side


def test_matplotlib_stays_as_it_is(tmp_path):
    script = (
        "import sys, kbert.visualization.plots as p; print('matplotlib' in sys.modules);"
        f"p.plot_confusion_matrix({str(tmp_path / 'a.png')!r}, [0, 1], [0, 1], ['a', 'b']);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\nFalse\n", done.stderr
