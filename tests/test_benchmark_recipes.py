"""The arithmetic of benchmarks/pretraining.py."""

import math

import pytest
from absl import app

from benchmarks import pretraining


def test_recipes():
    recipes = ["a: --bert_config=mini --learning_rate=1e-3", "b: --flagfile='my flags'"]
    assert pretraining.parse(recipes) == {
        "a": ["--bert_config=mini", "--learning_rate=1e-3"],
        "b": ["--flagfile=my flags"],
    }
    for wrong in (["--bert_config=mini"], ["a: --x=1", "a: --x=2"]):
        with pytest.raises(app.UsageError, match="--recipe must be NAME: FLAGS, each name once"):
            pretraining.parse(wrong)


def test_bits_per_byte():
    """A quarter of a token per byte, each worth 2 ln 2 nats or 2 bits: half a bit per byte."""
    points = [[1.0, 5, 4 * math.log(2), 0.125], [2.0, 10, 2 * math.log(2), 0.25]]
    result = pretraining.with_bits_per_byte({"heldout_tokens": 100, "points": points}, 400)
    assert result["bits_per_byte"] == result["points"][1][4] == pytest.approx(0.5)
    assert result["points"][0][4] == pytest.approx(1.0)
    assert (result["loss"], result["accuracy"]) == (2 * math.log(2), 0.25)


def test_bytes_are_those_of_the_lines(tmp_path):
    (tmp_path / "a.txt").write_text("ab cd\n\nÄ\n", encoding="utf-8")
    assert pretraining.text_bytes(str(tmp_path / "a.txt")) == 7


def test_the_better_half_trains_for_twice_the_time(monkeypatch):
    monkeypatch.setattr(pretraining, "FLAGS", type("Flags", (), {"screen": "1m"}))
    bits, calls = {"a": 2.4, "b": 2.1, "c": 2.3, "d": 2.2, "e": 2.0}, []

    def act(name, seconds):
        calls.append((name, seconds))
        return {"recipe": name, "bits_per_byte": bits[name]}

    left = pretraining.screen({name: ["--x"] for name in bits}, 2, act)
    assert list(left) == ["e", "b"]
    assert calls == [*((name, 60) for name in "abcde"), *((name, 120) for name in "ebd")]


def test_the_table_has_means_and_ranges():
    common = {"accuracy": 0.1, "nsp_accuracy": None, "parameters": 1.25e6, "steps": 1000}
    runs = [
        {"recipe": name, "bits_per_byte": bits, "loss": 6.0, **common}
        for name, bits in (("slow", 2.4), ("fast", 2.1), ("fast", 2.3))
    ]
    lines = pretraining.table(runs).splitlines()[2:]
    assert lines == [
        "| fast | 2.200 (2.100 to 2.300) | 6.000 (6.000 to 6.000) | 0.100 (0.100 to 0.100) |  "
        "| 1.2 M | 1,000 |",
        "| slow | 2.400 | 6.000 | 0.100 |  | 1.2 M | 1,000 |",
    ]
