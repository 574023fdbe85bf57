"""What the tests of pretraining runs share."""

import subprocess

import numpy as np
from run_files import metrics_of, weights_of
from warm_python import PYTHON

ARCHITECTURE = """
num_hidden_layers: 1
hidden_size: 16
num_attention_heads: 2
intermediate_size: 24
max_position_embeddings: 24
"""
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "over",
    "mat",
    "tree",
    "house",
    "green",
    "big",
]


def write_text(path, documents=12, seed=0):
    """Documents that go through the words in a circle: a masked word is known by its neighbours."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(documents):
        place = rng.integers(len(WORDS))
        for _ in range(rng.integers(3, 7)):
            length = rng.integers(4, 9)
            words = [WORDS[(place + i) % len(WORDS)] for i in range(length)]
            place += length
            lines.append(" ".join(words) + " .")
        lines.append("")
    path.write_text("\n".join(lines))
    return path


def assert_same_run(first, second):
    assert metrics_of(first) == metrics_of(second)
    a, b = weights_of(first / "pretrain/final"), weights_of(second / "pretrain/final")
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def command(settings, output_dir, python=PYTHON):
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [python, "-m", "kbert.pretrain", *flags, f"--output_dir={output_dir}"]


def run_program(settings, output_dir):
    return subprocess.run(
        command(settings, output_dir), capture_output=True, text=True, timeout=300
    )
