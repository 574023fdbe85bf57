"""Checks the inputs of the task programs without TensorFlow, so that errors appear immediately."""

import os
from collections.abc import Iterable

from kbert.corpus.arrow_files import column_names
from kbert.data.records import arrow_sources, source_files
from kbert.utils.formats import find_folder
from kbert.utils.input_files import read_byte_lines


def check_inputs(
    folders: Iterable[str | os.PathLike[str] | None], sources: Iterable[str | None]
) -> None:
    """Checks that folders of weights exist and that files can be read; ignores None.

    Sources that start with `tfds:` or `sample:` are not opened.
    """
    for folder in filter(None, folders):
        find_folder(folder)
    for source in filter(None, sources):
        for path in source_files(source):
            if files := arrow_sources(path):
                column_names(files[0])
            elif not path.startswith(("tfds:", "sample:")):
                next(read_byte_lines(path), None)
