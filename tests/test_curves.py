"""Learning curves: what is drawn of metrics.jsonl, and that drawing never ends a run."""

import json
import types

import PIL.Image
import pytest

from kbert.train import callbacks
from kbert.train.callbacks import LearningCurves
from kbert.visualization import curves
from kbert.visualization.curves import plot_curves, read_curves

pytestmark = pytest.mark.usefixtures("curves")


def write_metrics(folder, rows):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [
    {"step": 10, "loss": 2.5, "accuracy": 0.25, "learning_rate": 1e-4, "tokens_per_second": 9.0},
    {"step": 10, "eval_accuracy": 0.3, "eval_matthews": 0.1},
    {"step": 20, "loss": None, "accuracy": 0.5, "learning_rate": 5e-5, "tokens_per_second": 8.0},
    {"step": 30, "loss": 1.5, "accuracy": 0.75, "learning_rate": 0.0, "tokens_per_second": 9.0},
    {"step": 30, "eval_accuracy": 0.6, "eval_matthews": 0.2},
]


def learning_curves(folder):
    """The callback of a run in a folder."""
    callback = LearningCurves()
    callback.trainer = types.SimpleNamespace(folder=folder)
    return callback


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def kept(figure, *arguments, **settings):
        figures.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def test_curves_are_read_by_name(tmp_path):
    found = read_curves(write_metrics(tmp_path, ROWS))
    assert found["loss"] == {"training": [(10, 2.5), (30, 1.5)]}
    assert found["accuracy"] == {
        "training": [(10, 0.25), (20, 0.5), (30, 0.75)],
        "evaluation": [(10, 0.3), (30, 0.6)],
    }
    assert found["matthews"] == {"evaluation": [(10, 0.1), (30, 0.2)]}
    assert "step" not in found


def test_the_unigram_entropy_is_a_line_beside_the_loss(drawn, tmp_path):
    rows = [{"step": n, "eval_mlm_loss": 5.0 - n, "eval_unigram_entropy": 6.25} for n in (1, 2)]
    write_metrics(tmp_path, rows)
    learning_curves(tmp_path).on_train_end()
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert lines["evaluation"].tolist() == [4.0, 3.0]
    assert lines["unigram entropy"] == [6.25, 6.25]


def test_a_panel_for_each_name_with_its_lines(drawn, tmp_path):
    write_metrics(tmp_path, ROWS)
    learning_curves(tmp_path).on_train_end()
    (figure,) = drawn
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["loss", "accuracy", "matthews", "learning_rate"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[1].get_lines()}
    assert lines == {
        "training": [[10, 0.25], [20, 0.5], [30, 0.75]],
        "evaluation": [[10, 0.3], [30, 0.6]],
    }
    assert "unigram entropy" not in lines
    with PIL.Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 400
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


@pytest.mark.parametrize("rows", [[], ROWS[:2]])
def test_points_alone_are_no_curve(rows, tmp_path):
    plot_curves(tmp_path / "curves.png", read_curves(write_metrics(tmp_path, rows)))
    assert not (tmp_path / "curves.png").exists()


def test_drawing_takes_a_small_share_of_the_time(drawn, tmp_path, monkeypatch):
    write_metrics(tmp_path, ROWS)
    clock = iter([0.0, 0.0, 2.0, 101.0, 102.0, 102.0, 103.0, 104.0, 105.0])
    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    picture = learning_curves(tmp_path)
    for count in (1, 1, 2):
        picture.on_evaluate({}, False)  # at 0, until 2; at 101; at 102, until 103
        assert len(drawn) == count
    picture.on_train_end()  # at 104, until 105
    assert len(drawn) == 3


def test_a_failure_is_one_line_and_the_last_try(tmp_path, monkeypatch, capsys):
    write_metrics(tmp_path, ROWS)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise OSError(28, "No space left\non device")

    monkeypatch.setattr(curves, "plot_curves", fail)
    picture = learning_curves(tmp_path)
    picture.on_evaluate({}, False)
    picture.on_train_end()
    line = "note: cannot draw curves.png: OSError: [Errno 28] No space left\\non device\n"
    assert capsys.readouterr().out == line and len(calls) == 1
