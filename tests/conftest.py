"""Fixtures that several test files share."""

import os
import pathlib
import tempfile

# Before TensorFlow is imported: it imports JAX where that is installed, which would set this to 1
# for every process that a test starts, as no user's shell does.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What XLA compiles once serves all processes of a run of the tests.
if "TF_XLA_FLAGS" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory()
    os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={COMPILED.name}"

import numpy as np
import pytest

from kbert.data import prepare
from kbert.data.vocab import SPECIAL_TOKENS, write_vocab

SHARED_DATA = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "un", "##want", "##ed", "run"]
WORDS += ["##ning", ",", ".", "!", "[", "]", "mask"]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Tells how a worker of pytest-xdist ended that should not have: -15 is SIGTERM."""
    if error:
        print(f"\n{node.gateway.id} ended with status {node.gateway._io.popen.wait(30)}")


@pytest.fixture
def shared_data():
    """Folder of real public data, which is not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the public data sets in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def vocab_file(tmp_path):
    """A vocabulary of 25 entries."""
    path = tmp_path / "vocab.txt"
    write_vocab([*SPECIAL_TOKENS, *WORDS], path)
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """40 documents in two shards; the words are numbers, so that every span can be recognised."""
    folder = tmp_path_factory.mktemp("corpus")
    words = [f"w{i}" for i in range(345)] + [f"##{i}" for i in range(50)]
    write_vocab([*SPECIAL_TOKENS, *words], folder / "vocab.txt")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        lines = []
        for _ in range(20):
            for _ in range(rng.integers(1, 9)):
                tokens = [words[i] for i in rng.integers(0, 345, rng.integers(2, 12))]
                tokens[::3] = [f"{token}{rng.integers(50)}" for token in tokens[::3]]
                lines.append(" ".join(tokens))
            lines.append("")
        (folder / f"{name}.text").write_text("\n".join(lines))
    return prepare(f"{folder}/*.text", folder / "corpus", folder / "vocab.txt")
