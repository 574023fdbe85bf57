"""Files that an earlier version wrote, and files of a newer version.

`formats/write.py` wrote the stored files. The expected ids follow from its vocabulary and its text.
"""

import json
import pathlib
import shutil

import pytest

from kbert.corpus import Corpus
from kbert.errors import UserError

pytestmark = pytest.mark.smoke

STORED = pathlib.Path(__file__).parent / "formats" / "corpus_1"


def test_stored_corpus_is_read():
    corpus = Corpus(STORED)
    # "a cat sat . a dog ran ." and "cat ##s ran ."; ids 5 to 11 are a, cat, sat, dog, ran, ##s, .
    assert corpus.read(0, corpus.tokens).tolist() == [5, 6, 7, 11, 5, 8, 9, 11, 6, 10, 9, 11]
    assert corpus.document_starts.tolist() == [0, 8, 12]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("kbert corpus 2", r"a newer kbert .* reads 'kbert corpus 1'\). Install a newer kbert"),
        ("kbert corpus 0", r"has the format 'kbert corpus 0'; .* Prepare"),
        ("kbert corpus x", r"has the format 'kbert corpus x'; .* Prepare"),
        (2, r"has the format 2; .* reads 'kbert corpus 1'. Prepare"),
    ],
)
def test_corpus_of_another_format_is_refused(tmp_path, found, message):
    shutil.copytree(STORED, tmp_path / "corpus")
    path = tmp_path / "corpus" / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": found}))
    with pytest.raises(UserError, match=message):
        Corpus(tmp_path / "corpus")
