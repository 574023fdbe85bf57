"""Fixtures that several test files share."""

import pathlib

import pytest

from kbert.data.vocab import SPECIAL_TOKENS, write_vocab

SHARED_DATA = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "un", "##want", "##ed", "run"]
WORDS += ["##ning", ",", ".", "!", "[", "]", "mask"]


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
