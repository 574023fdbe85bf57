"""Reads sentences of tagged words, one word per line: CoNLL, CoNLL-U, and Chinese BMES files."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kbert.data.columns import count, is_number
from kbert.data.records import BadExample, Records, is_utf8, not_utf8, read_lines
from kbert.errors import UserError
from kbert.utils.input_files import plain_name

if TYPE_CHECKING:
    from kbert.settings.tasks import ColumnConfig

# Prefixes of BMES (= BIOES with M for I) and of BILOU, and their IOB2 equivalents.
_TO_IOB2 = {"B": "B", "I": "I", "M": "I", "E": "I", "L": "I", "S": "B", "U": "B"}
_SPAN_TAG = re.compile(r"([BIMELSU])-.")


def conll(path: str, name: str, config: "ColumnConfig", labelled: bool) -> Records:
    """Returns the sentences of a file, as records with "words" and, if `labelled`, "tags".

    Columns are separated by tabs in a line that has a tab, else by spaces; sentences are separated
    by blank lines. The word is in the first column and the tag in the last. In files named .conllu
    the word is in column 1 and the tag in column 3 (UPOS) of 10, else in the last; comments, ranges
    ("3-4") and empty nodes ("5.1") are skipped. Columns are numbered from 0.

    Args:
        path: path of the file. name: its name in messages.
        config: has text_column and label_column, None or a number in digits.

    Raises:
        UserError: the file cannot be read, or a column is not a number.
    """
    reader = _Reader(path, config, labelled)
    return Records(name, reader.sentences(read_lines(path), name), ("words", "tags"))


class _Reader:
    def __init__(self, path, config, labelled):
        self.path, self.labelled = path, labelled
        self.is_conllu = plain_name(path).endswith(".conllu")
        self.word_column = _number("text_column", config.text_column)
        self.tag_column = _number("label_column", config.label_column)
        if self.word_column is None:
            self.word_column = 1 if self.is_conllu else 0
        self.width = None  # columns of the first line

    def sentences(self, lines, name):
        where, words, tags, problem = None, [], [], None
        for number, line in itertools.chain(lines, [(None, "")]):
            if not line.strip(" \t"):  # other white space may be a word: U+3000 in Chinese files
                if where:
                    yield where, problem or {"words": words, "tags": tags}
                where, words, tags, problem = None, [], [], None
                continue
            if self._is_passed_over(line):
                continue
            where = where or f"{name}, line {number}"
            try:
                word, tag = self._word(line)
                words.append(word)
                tags.append(tag)
            except BadExample as error:
                if problem is None:
                    where, problem = f"{name}, line {number}", error

    def _is_passed_over(self, line):
        if not self.is_conllu:
            return line.startswith("-DOCSTART-")
        is_range = self.word_column != 0 and re.match(r"\d+[-.]\d+\s", line)
        return line.startswith(("-DOCSTART-", "# ")) or is_range

    def _word(self, line):
        if not is_utf8(line):
            raise not_utf8(self.path)
        cells = line.split("\t") if "\t" in line else [c for c in line.split(" ") if c]
        self.width = self.width or len(cells)
        tag_column = self._tag_column(len(cells)) if self.labelled else None
        columns = [c for c in (self.word_column, tag_column) if c is not None]
        if min(columns) < 0 and len(cells) != self.width:
            raise BadExample(
                f"the line has {count(len(cells), 'column')}, the first line has {self.width}"
            )
        places = [c if c >= 0 else c + len(cells) for c in columns]
        if not all(0 <= place < len(cells) for place in places) or len(set(places)) < len(places):
            expected = f"the word in column {self.word_column}"
            if self.labelled:
                expected += f" and the tag in column {tag_column}"
            raise BadExample(f"the line has {count(len(cells), 'column')}; expected {expected}")
        word, tag = cells[places[0]].strip(" "), cells[places[-1]].strip() or None
        if not word:
            raise BadExample("the word is empty")
        if self.labelled and tag is None:
            raise BadExample("the tag is empty")
        return word, tag

    def _tag_column(self, width):
        if self.tag_column is not None:
            return self.tag_column
        return 3 if self.is_conllu and width == 10 else -1


def _number(flag, column):
    if column is None:
        return None
    if not is_number(column):
        raise UserError(
            f"--{flag} must be a number for this file, which has one word per line and no header "
            f"(0 is the first column, -1 the last); got {column!r}."
        )
    return int(column)


def to_iob2(sentences: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Converts tags in BMES, BIOES or BILOU to IOB2; other tags are unchanged.

    sentences: list of sequences of tags, of a whole file: its prefixes determine the scheme.
    """
    sentences = [tuple(tags) for tags in sentences]
    distinct = {tag for tags in sentences for tag in tags} - {"O"}
    prefixes = [match and match[1] for match in map(_SPAN_TAG.match, distinct)]
    if None in prefixes or not {"M", "E", "S", "L", "U"} & set(prefixes):
        return sentences
    new = {tag: _TO_IOB2[tag[0]] + tag[1:] for tag in distinct}
    return [tuple(new.get(tag, tag) for tag in tags) for tags in sentences]
