"""Reads sentences of tagged words from CoNLL, CoNLL-U and Chinese BMES files, one word per line."""

import itertools
import re
from typing import TYPE_CHECKING

from kbert.data.columns import count_text, is_number
from kbert.data.records import BadExample, Records, not_utf8_error, read_lines
from kbert.errors import UserError
from kbert.fields import is_text
from kbert.utils.input_files import plain_name

if TYPE_CHECKING:
    from kbert.settings.tasks import ColumnConfig

# A line that may be a comment before a sentence, unless it has a tag: "#" may also be a word.
_COMMENT = re.compile(r"#(\s|$|begin document|end document)")
_ENTITY_TAG = re.compile(r"[BIESMLU]-[A-Z]+|O")
_ANY_ENTITY_TAG = re.compile(r"[BIESMLU][-_]\S+|O")
_WORD_SEPARATOR = re.compile("[ \2]+")  # between the words of a sentence, as PaddleNLP joins them
_LANGUAGE = re.compile(r"([a-z]{2,3}(?:-[a-z]+)*:)[^\t]")  # WikiANN writes en:word
_RANGE = re.compile(r"\d+[-.]\d+(?!\S)")  # CoNLL-U: 3-4 is a range of words, 5.1 an empty node
_FIRST_LINES = 10_000  # number of lines from which the layout of a file is detected
_HEADER = {"word", "words", "token", "tokens", "text", "char", "form", "sentence", "id", "index"}
_HEADER |= {"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "pos", "chunk", "iob"}
_HEADER |= {"sentence #", "sentence_id", "sent_id", "sentence id", "sentence_idx", "entity"}


def read_conll(path: str, name: str, config: "ColumnConfig", labeled: bool) -> Records:
    """Returns the sentences of a file, as records with "words" and, if `labeled`, "tags".

    Columns are numbered from 0, and separated by tabs if the line contains one, otherwise by
    spaces. A blank line or a line that starts with -DOCSTART- ends a sentence. By default, the word
    is in column 0, or in column 1 if column 0 numbers the words or sentences, and the tag is in the
    last column. If only the first of two columns has entity tags, the tag is in column 0. In files
    named .conllu the word is in column 1, and the tag in column 3 (UPOS) if there are 10 columns,
    otherwise in the last. A header, comments (lines before a sentence that start with "# " and have
    no tag), a language prefix of all words ("en:word") and, if column 0 numbers the words, ranges
    ("3-4") and empty nodes ("5.1") are dropped. If there are no blank lines, column 0 may separate
    sentences by an id that all lines of a sentence share.
    """
    reader = _Reader(path, config, labeled)
    first_lines = itertools.islice(read_lines(path), _FIRST_LINES)
    reader.detect_layout([line for _, line in first_lines], name)
    records = Records(name, reader.sentences(read_lines(path), name), ("words", "tags"))
    records.notes += reader.notes
    return records


class _Reader:
    def __init__(self, path, config, labeled):
        self.path, self.labeled = path, labeled
        self.is_conllu = plain_name(path).endswith(".conllu")
        self.has_word_numbers = self.is_conllu  # the first column numbers the words
        self.has_sentence_ids = False  # the first column separates sentences, not blank lines
        self.sentence_id = ""
        self.word_column = _column_number("text_column", config.text_column)
        self.tag_column = _column_number("label_column", config.label_column)
        self.width = None  # number of columns in the first line
        self.header = None
        self.tags = set()
        self.language = ""  # prefix of all words
        self.notes = []

    def detect_layout(self, lines, name):
        """Detects the layout of the file from its first lines."""
        sentences = _sentences(lines)
        if self._has_header(sentences, lines):
            self.header = sentences[0][0]
            sentences = _sentences(_remove_row(lines, self.header))
            self.notes.append(f"the first line is a header: {' '.join(self.header)}")
        rows = [row for sentence in sentences for row in sentence]
        if not rows:
            return
        self.width = len(rows[0])
        self.has_word_numbers |= _has_word_numbers(sentences)
        is_free = self.width > 2 if self.word_column is None else self.word_column > 0
        may_be_ids = is_free and self.tag_column != 0
        self.has_sentence_ids = may_be_ids and _has_sentence_ids(sentences)
        if self.word_column is None and self.tag_column is None and _has_tags_first(rows):
            self.word_column, self.tag_column = 1, 0
            self.notes.append("the tags are in column 0, the words in column 1")
        elif self.word_column is None:
            self.word_column = int(self.has_word_numbers or self.has_sentence_ids)
            if not self.is_conllu:
                self._check_first_column(sentences, name)
        self.tags = {self._tag(row) for row in rows if len(row) == self.width}
        if self.labeled and self.tag_column is None and not self.is_conllu:
            self._check_tags(rows, name)
        words = [row[self.word_column] for row in rows if _has_column(row, self.word_column)]
        self._check_words(rows, words, name)
        languages = {match and match[1] for match in map(_LANGUAGE.match, words)}
        if len(languages) == 1 and None not in languages and len(words) > 2:
            self.language = languages.pop()
            self.notes.append(f"the prefix {self.language!r} of each word is dropped")

    def _has_header(self, sentences, lines):
        """Returns whether the first row has only column names, or a name above entity tags."""
        first = sentences[0][0] if sentences else []
        if len(first) < 2:
            return False
        if {cell.lower() for cell in first} <= _HEADER:
            return True
        rest = [row for rows in _sentences(_remove_row(lines, first)) for row in rows]
        columns = list(zip(*(row for row in rest if len(row) == len(first)), strict=True))[1:]
        return any(
            re.fullmatch(r"[A-Za-z][\w -]+", name)
            and not _ANY_ENTITY_TAG.fullmatch(name)
            and _are_entity_tags(cells)
            for name, cells in zip(first[1:], columns, strict=False)
        )

    def _check_first_column(self, sentences, name):
        """Raises UserError if it is not clear which columns have the words and the tags.

        In a file of more than two columns, this is not clear if the first column is the same in all
        lines of each sentence or consists of numbers. A first column of word or sentence numbers is
        an error only if the tag column is not clear either.
        """
        longer = [{row[0] for row in sentence} for sentence in sentences if len(sentence) > 2]
        is_same = self.width > 2 and bool(longer) and all(len(cells) == 1 for cells in longer)
        is_ambiguous = self.labeled and self.tag_column is None and self.width > 3
        numbers = [not row[0] or row[0].isdecimal() for rows in sentences for row in rows]
        if is_same:
            has = "is the same in all lines of a sentence"
        elif self.has_word_numbers or self.has_sentence_ids:
            has = f"numbers the {'words' if self.has_word_numbers else 'sentences'}"
        else:
            has = "has numbers" if self.width > 2 and sum(numbers) > 0.9 * len(numbers) else ""
        if has and (is_ambiguous or not (self.has_word_numbers or self.has_sentence_ids)):
            raise UserError(
                f"{name} has {self.width} columns, of which the first {has}; one line is "
                f"{' '.join(sentences[-1][-1])[:60]!r}. Name the columns of words and tags, "
                f"numbered from 0, such as --text_column=1 --label_column=2."
            )
        if self.has_word_numbers:
            self.notes.append(
                "the first column (column 0) contains word numbers; words are read from column 1"
            )
        if self.has_sentence_ids:
            self.notes.append(
                "the first column contains sentence numbers; words are read from column 1"
            )

    def _check_tags(self, rows, name):
        """Raises UserError if the last column is constant and another column has entity tags."""
        columns = zip(*(row for row in rows if len(row) == self.width), strict=True)
        places = [i for i, cells in enumerate(columns) if i and _are_entity_tags(cells)]
        if places and len(self.tags) == 1 and not _are_entity_tags([*self.tags, "B-X"]):
            raise UserError(
                f"{name} has {self.width} columns, of which the last is {min(self.tags)!r} in all "
                f"lines; entity tags are in column {' and '.join(map(str, places))}, counted from "
                f"0. Name the column to read, such as --label_column={places[0]}."
            )

    def _check_words(self, rows, words, name):
        """Raises UserError if lines have a whole sentence, or if words are quoted as in CSV."""
        pairs = [(word, self._tag(row) or "") for word, row in zip(words, rows, strict=False)]
        counts = [[len(_WORD_SEPARATOR.split(cell.strip())) for cell in pair] for pair in pairs]
        if any("\2" in word for word in words) or (
            len(words) == len(rows)
            and all(words == tags for words, tags in counts)
            and any(tags > 1 for _, tags in counts)
        ):
            raise UserError(
                f"{name} has a sentence in each line, such as {words[-1][:60]!r}. Write one word "
                f"with its tag in each line and an empty line between sentences, or JSON lines: "
                f'{{"words": ["the", "cat"], "tags": ["O", "O"]}}.'
            )
        if '""""' in words and '"' not in words:
            raise UserError(
                f'{name} has the word """", which is how CSV writes a quote. Write the words '
                f"without quotes, for example with to_csv(quoting=csv.QUOTE_NONE) in pandas."
            )

    def sentences(self, lines, name):
        where, words, tags, problem = None, [], [], None
        for number, line in itertools.chain(lines, [(None, "")]):
            if self._ends_sentence(line):
                if where:
                    yield where, problem or {"words": words, "tags": tags}
                where, words, tags, problem = None, [], [], None
            if self._is_skipped(line, not where):
                continue
            where = where or f"{name}, line {number}"
            try:
                word, tag = self._parse_line(line)
                words.append(word)
                tags.append(tag)
            except BadExample as error:
                if problem is None:
                    where, problem = f"{name}, line {number}", error

    def _ends_sentence(self, line):
        """Returns whether a line ends the sentence before it."""
        if _is_separator(line):
            return True
        before, new = self.sentence_id, _cells(line)[0] if self.has_sentence_ids else ""
        self.sentence_id = new or before
        return self.sentence_id != before

    def _is_skipped(self, line, begins):
        """Returns whether to skip a line; `begins` is True if its word would begin a sentence."""
        if self.header and _cells(line) == self.header:
            self.header = None  # only once
            return True
        if _is_separator(line):
            return True
        if begins and _COMMENT.match(line):
            cells = _cells(line)
            has_form = len(cells) == self.width and " " not in cells[0]
            tag = self._tag(cells)
            is_tag = tag in self.tags or (tag and _ENTITY_TAG.fullmatch(tag))
            return not (has_form and (self.width == 1 or is_tag))
        return self.has_word_numbers and self.word_column != 0 and _RANGE.match(line)

    def _tag(self, cells):
        column = self._tag_column(len(cells))
        return cells[column].strip() if _has_column(cells, column) else None

    def _parse_line(self, line):
        if not is_text(line):
            raise not_utf8_error(self.path)
        cells = _cells(line)
        tag_column = self._tag_column(len(cells)) if self.labeled else None
        columns = [c for c in (self.word_column, tag_column) if c is not None]
        if min(columns) < 0 and len(cells) != self.width:
            raise BadExample(
                f"the line has {count_text(len(cells), 'column')}, the first line has {self.width}"
            )
        places = [c if c >= 0 else c + len(cells) for c in columns]
        if not all(_has_column(cells, c) for c in columns) or len(set(places)) < len(places):
            expected = f"the word in column {self.word_column}"
            if self.labeled:
                expected += f" and the tag in column {tag_column}"
            raise BadExample(
                f"the line has {count_text(len(cells), 'column')}; expected {expected}"
            )
        word, tag = cells[places[0]].strip(" "), cells[places[-1]].strip() or None
        word = word.removeprefix(self.language)
        if not word:
            raise BadExample("the word is empty")
        if self.labeled and tag is None:
            raise BadExample("the tag is empty")
        return word, tag

    def _tag_column(self, width):
        if self.tag_column is not None:
            return self.tag_column
        return 3 if self.is_conllu and width == 10 else -1


def _cells(line):
    return line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def _has_column(cells, column):
    return -len(cells) <= column < len(cells)


def _is_separator(line):
    """Returns whether a line separates sentences; U+3000 does not, as it may be a Chinese word."""
    return not line.strip(" \t") or line.startswith("-DOCSTART-")


def _remove_row(lines, row):
    """Returns the lines without the first one whose cells are `row`."""
    place = next(place for place, line in enumerate(lines) if _cells(line) == row)
    return lines[:place] + lines[place + 1 :]


def _sentences(lines):
    """Returns the rows of each sentence, without lines that may be comments."""
    sentences, begins = [], True
    for line in lines:
        is_between = _is_separator(line)
        if is_between or (begins and _COMMENT.match(line)):
            begins |= is_between
            continue
        if begins:
            sentences.append([])
        sentences[-1].append(_cells(line))
        begins = False
    return sentences


def _has_word_numbers(sentences):
    """Returns whether the first column numbers the words of each sentence, from 0 or 1."""
    counts = 0
    for rows in sentences:
        words = [row[0] for row in rows if not _RANGE.fullmatch(row[0]) and len(row) > 1]
        first = words[:1] == ["1"]
        if words != [str(first + place) for place in range(len(words))]:
            return False
        counts += len(words)
    return counts > 2


def _has_tags_first(rows):
    """Returns whether the first of two columns has the entity tags, as in the MIT movie corpus."""
    pairs = [row for row in rows if len(row) == 2]
    tags, words = zip(*pairs, strict=True) if pairs else ((), ())
    return (
        any(tag.startswith("B") for tag in tags)
        and all(map(_ANY_ENTITY_TAG.fullmatch, tags))
        and not all(map(_ANY_ENTITY_TAG.fullmatch, words))
    )


def _are_entity_tags(cells):
    return set(cells) != {"O"} and all(map(_ANY_ENTITY_TAG.fullmatch, cells))


def _has_sentence_ids(sentences):
    """Returns whether the first column has sentence ids and there are no blank lines."""
    if len(sentences) != 1:
        return False
    ids = [row[0] for row in sentences[0] if row[0]]
    runs = len(list(itertools.groupby(ids)))
    return 1 < runs == len(set(ids)) and 2 * runs <= len(sentences[0])


def _column_number(flag, column):
    if column is None:
        return None
    if not is_number(column):
        raise UserError(
            f"--{flag} must be a number for a file with one word per line (0 is the first column, "
            f"-1 the last); got {column!r}."
        )
    return int(column)
