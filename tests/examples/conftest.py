"""Writes and reads files of examples."""

import gzip
import pathlib

import pytest
from example_files import settings

from kbert.errors import UserError
from kbert.tasks.examples import read_split

SHARED_CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"


@pytest.fixture
def shared_cases():
    """Folder of files that people have, which are not part of the project."""
    if not SHARED_CASES.is_dir():
        pytest.skip(f"needs the files in {SHARED_CASES}")
    return SHARED_CASES


@pytest.fixture
def read(tmp_path):
    """Writes a file, reads it as a task, and gives the examples."""

    def read(name, content, task, labeled=True, report=print, **changed):
        content = content if isinstance(content, bytes) else content.encode()
        content = gzip.compress(content) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(content)
        return read_split(tmp_path / name, settings(task, **changed), labeled, report)

    return read


@pytest.fixture
def error_of(read):
    """As `read`, of what cannot be read: the message."""

    def error_of(*args, **kwargs):
        with pytest.raises(UserError) as error:
            read(*args, **kwargs)
        return str(error.value)

    return error_of
