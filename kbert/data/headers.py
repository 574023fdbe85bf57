"""Decides whether the first row of a table is a header, from the rows below it."""

import re
from collections.abc import Collection, Iterator, Sequence

from kbert.data.column_profiles import Profile, is_numeric, word_count
from kbert.data.records import value_text
from kbert.errors import UserError

# Common label values, which are unlikely as column names.
_VALUES = {"positive", "negative", "neutral", "pos", "neg", "yes", "no", "true", "false", "mixed"}
_VALUES |= {"spam", "ham", "entailment", "contradiction", "none", "other", "unknown", "nan", "-"}
_NAME = re.compile(r"[^\W\d_]\w*([ ./_-]\w+)*|")
# The signs that `_signs` yields. Those in `_AGAINST` suggest that the first row is not a header;
# the others suggest that it is. A strong sign against a header outweighs those in `_CHANCE`, which
# may occur by chance. Weak signs count only if there are no strong ones, and a single weak sign for
# a header does not; weak signs against a header also count if the strong ones are only "odd" or
# "digits". If there are signs on both sides, or none, `find_header` raises UndecidedError.
_AGAINST, _CHANCE = {"number", "value", "sentence", "phrase"}, {"odd", "short", "digits"}


class UndecidedError(UserError):
    """The header or a column of a file cannot be determined."""


def normalize_name(name: str) -> str:
    """Returns a column name in lower case with underscores: "Review Text" -> "review_text"."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def find_header(rows: Sequence[Sequence[str]], known: Collection[str], name: str) -> str | None:
    """Decides whether the first row of a table is a header.

    Args:
        rows: the first rows of a table, at least one.
        known: known names of columns, as `normalize_name` returns them.
        name: name of the file in messages.

    Returns:
        "names" if the first row is a header with a known name, "rows" if it is a header because it
        differs from the rows below it, None if it is not a header.

    Raises:
        UndecidedError: it is not clear whether the first row is a header.
    """
    first = [cell.strip() for cell in rows[0]]
    rest = rows[1:]
    if all(_NAME.fullmatch(cell) and word_count(cell) < 4 for cell in first):
        rest = [row for row in rest if row != rows[0]]  # a repeated header is no evidence
    if _is_numbered(first, rest):
        return "rows"
    signs = [sign for column in range(len(first)) for sign in _signs(first, rest, column, known)]
    strong = {sign for sign, is_strong in signs if is_strong}
    weak = [sign for sign, is_strong in signs if not is_strong]
    against, pro = strong & _AGAINST, strong - _AGAINST
    if against:
        pro -= _CHANCE
    elif not strong:
        against = _AGAINST & {*weak}
        pro = {*weak} - against if len(weak) > 1 else set()
    elif not pro & {"word", "known", "short"}:
        against = _AGAINST & {*weak}
    if bool(pro) != bool(against):
        return None if against else "names" if "known" in pro else "rows"
    raise UndecidedError(
        f"{name}: it is not clear whether the first row is a header: "
        f"{', '.join(map(value_text, first[:20]))}. Set --header=yes or --header=no."
    )


def _is_numbered(first, rest):
    """Returns whether the first row is 0, 1, 2, ... above text, the default names of pandas."""
    cells = first[1:] if first[0] == "" else first
    is_count = len(cells) > 1 and cells == [str(i) for i in range(len(cells))]
    return is_count and any(not is_numeric(c) for row in rest for c in row if c.strip())


def _signs(first: Sequence[str], rest: Sequence[Sequence[str]], column: int, known) -> Iterator:
    """Yields the signs in a column, as pairs (name of the sign, whether it is strong)."""
    cell = first[column]
    below = Profile(row[column] for row in rest if column < len(row))
    size = len(below.texts)
    if is_numeric(cell):
        yield "number", below.is_number
    elif below.is_number and size > 1 and (cell or below.is_index):
        yield "word", True  # also for a blank cell above row numbers
    elif cell and (cell in below.counts or cell.lower() in _VALUES):
        yield "value", True
    elif normalize_name(cell) in known:
        yield "known", True
    elif cell:
        yield from _signs_of_word(cell, below, size)


def _signs_of_word(cell, below, size):
    words, is_name = word_count(cell), _NAME.fullmatch(cell) and len(cell) <= 40
    if words >= 4:
        yield "sentence", True
    elif below.is_prose or (below.is_text and not below.repeats):
        shortest = min(map(word_count, below.texts), default=0)
        if is_name and words < shortest and size > 4:
            yield "short", size > 8
        elif words > 1 and 0.5 * below.mean_words <= words <= 1.5 * below.mean_words:
            yield "phrase", False
    elif below.repeats and size > 4:
        single = sum(number == 1 for number in below.counts.values())
        yield "odd", (single + 1) / (size + 1) <= 0.1
    elif size > 4 and not _has_digit(cell) and all(map(_has_digit, below.counts)):
        yield "digits", size > 8


def _has_digit(text):
    return any(map(str.isdigit, text))
