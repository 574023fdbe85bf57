"""Detects files that contain a table, markup, subtitles or CoNLL-U instead of plain text."""

import csv
import itertools
import os
import re
from collections.abc import Sequence

from kbert.errors import UserError
from kbert.utils.input_files import filter_command

FIRST_LINES = 8  # number of lines that determine the format of a file
_TAG = re.compile(rb"<[A-Za-z!/][\w:.-]*(?:\s[^>]*)?/?>")  # a line that is one tag
_TIMES = re.compile(rb"\d+:\d+:\d+[,.]\d+ --> .*")  # the second line of .srt subtitles
_WORD = re.compile(rb"\d+(?:\t[^\t]+){9}")  # a word of CoNLL-U: a number and nine columns


def check_prose(lines: Sequence[bytes], path: str | os.PathLike[str]) -> None:
    """Raises UserError if a file starts with a tag, subtitles, CoNLL-U or numbered sentences.

    `lines` are its first nonempty lines, without surrounding spaces.
    """
    first, begin = lines[0] if lines else b"", lines[:FIRST_LINES]
    if _TAG.fullmatch(first):
        name = "markup (XML, HTML or SGML)"
    elif any(map(_TIMES.fullmatch, begin[1:2])):
        name = "subtitles"
    elif any(map(_WORD.fullmatch, begin)):
        name = "CoNLL-U"
    elif _is_numbered(begin):
        raise UserError(
            f"The lines of {path} start with a number and a tab. Remove them: "
            f"{filter_command(path, 'cut -f2-', 'NEW.txt')}"
        )
    else:
        return
    raise UserError(f"{path} is {name}, not plain text. Extract its text first.")


def _is_numbered(lines):
    """Returns whether all lines start with increasing numbers and a tab (Leipzig corpora)."""
    matches = [re.match(rb"(\d{1,18})\t", line) for line in lines]
    numbers = [int(match[1]) for match in matches if match]
    rises = all(a < b for a, b in itertools.pairwise(numbers))
    return len(numbers) == len(lines) > 1 and rises


def is_quoted_table(lines: Sequence[bytes]) -> bool:
    """Returns whether the first lines of a file are a table with quoted fields.

    They must have at least three rows and two columns, an equal number of columns in all rows, and,
    on average, a quoted field in every row below the first.
    """
    texts = [line.decode("utf-8", "replace") + "\n" for line in lines]
    for mark in ",;\t":
        reader = csv.reader(texts, delimiter=mark, strict=True)
        try:
            rows = list(itertools.islice(reader, FIRST_LINES))
        except csv.Error:
            continue
        quotes = re.findall(f'(?m)(?:^|{mark})"', "".join(texts[: reader.line_num]))
        same_width = len({len(row) for row in rows}) == 1 < len(rows[0])
        if same_width and len(quotes) >= len(rows) - 1 >= 2:
            return True
    return False
