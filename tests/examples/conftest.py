"""Writes and reads files of examples."""

import gzip

import pytest
from example_files import settings

from kbert.errors import UserError
from kbert.tasks.examples import read_examples


@pytest.fixture
def read(tmp_path):
    """Writes a file, reads it as a task, and gives the examples."""

    def read(name, content, task, labelled=True, report=print, **changed):
        content = content if isinstance(content, bytes) else content.encode()
        content = gzip.compress(content) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(content)
        return read_examples(tmp_path / name, settings(task, **changed), labelled, report)

    return read


@pytest.fixture
def error_of(read):
    """As `read`, of what cannot be read: the message."""

    def error_of(*args, **kwargs):
        with pytest.raises(UserError) as error:
            read(*args, **kwargs)
        return str(error.value)

    return error_of
