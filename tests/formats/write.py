"""Writes the stored corpus that `tests/test_stored_formats.py` reads.

Run `PYTHONPATH=. python tests/formats/write.py` only for a new format, with a new name of the
folder: a folder that an earlier version wrote shows that this version still reads it.
"""

import contextlib
import pathlib
import tempfile

from kbert.corpus import prepare
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

FOLDER = pathlib.Path(__file__).parent / "corpus_1"
WORDS = ["a", "cat", "sat", "dog", "ran", "##s", "."]
TEXT = "a cat sat .\na dog ran .\n\ncats ran .\n"


def main() -> None:
    """Writes the folder `corpus_1`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pathlib.Path("text.txt").write_text(TEXT, encoding="utf-8")
        write_vocab([*SPECIAL_TOKENS, *WORDS], "vocab.txt")
        prepare("text.txt", FOLDER, "vocab.txt", processes=1)


if __name__ == "__main__":
    main()
