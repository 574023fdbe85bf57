"""Classifies table columns by their values: numbers, prose, labels, lists."""

import collections
import functools
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    Key: TypeAlias = str | int

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_CODE = re.compile(r"(?=.*\d)(?=.*[^\W\d])\S+")  # in scripts with spaces between words
_DATE = re.compile(r"\d+[-/.]\d+[-/.]\d+")
_COUNTED = 1000  # maximum number of values whose words and characters are counted


def is_numeric(text: str) -> bool:
    """Returns whether a text is a number such as "3", "-0.5" or "1e-3"."""
    return _NUMBER.fullmatch(text) is not None


def word_count(text: str) -> int:
    """Returns the number of words plus half of the characters of scripts without spaces."""
    return len(text.split()) + len(_UNSPACED.findall(text)) // 2


class Profile:
    """A sample of the values of a column.

    Attributes:
        texts: the values that are not blank, as stripped strings.
        blanks: number of blank values and of None.
        counts: number of occurrences of each text.
        distinct: number of different texts.
        is_string: whether all values are strings or None.
        has_lists: whether any value is a list.
        has_objects: whether a value is a dict, or a list that contains a dict or a list.
    """

    def __init__(self, values: Iterable[object]):
        values = list(values)
        stripped = [str(value).strip() for value in values if value is not None]
        self.texts: list[str] = [text for text in stripped if text]
        self.blanks: int = len(values) - len(self.texts)
        self.counts: collections.Counter[str] = collections.Counter(self.texts)
        self.distinct: int = len(self.counts)
        self.has_lists: bool = any(isinstance(value, list) for value in values)
        self.has_objects: bool = any(
            isinstance(part, dict | list)
            for value in values
            for part in (value if isinstance(value, list) else [value] * isinstance(value, dict))
        )
        self.is_string: bool = all(isinstance(value, str | None) for value in values)

    @functools.cached_property
    def is_number(self) -> bool:
        """Whether at least nine in ten values that are not blank are numbers."""
        return bool(self.texts) and 10 * len(self._numbers) >= 9 * len(self.texts)

    @functools.cached_property
    def _numbers(self) -> list[float]:
        return [float(text) for text in self.texts if is_numeric(text)]

    @property
    def has_decimal_commas(self) -> bool:
        """Whether all values that are not blank are numbers with a decimal comma, such as "4,5"."""
        return bool(self.texts) and all(re.fullmatch(r"[-+]?\d+,\d+", t) for t in self.counts)

    @functools.cached_property
    def has_fractions(self) -> bool:
        """Whether the values are numbers that are not all whole."""
        return self.is_number and not all(number.is_integer() for number in self._numbers)

    @functools.cached_property
    def is_index(self) -> bool:
        """Whether the values may be row numbers, that is, three or more consecutive integers."""
        numbers = set(self._numbers)
        if self.has_fractions or not len(numbers) == len(self.texts) > 2:
            return False
        return max(numbers) - min(numbers) == len(numbers) - 1

    @functools.cached_property
    def mean_words(self) -> float:
        """Mean number of words of the first 1,000 values that are not blank."""
        counted = self.texts[:_COUNTED]
        return sum(map(word_count, counted)) / max(len(counted), 1)

    @property
    def is_categorical(self) -> bool:
        """Whether each distinct value occurs at least eight times on average."""
        return len(self.texts) >= 8 and self.distinct * 8 <= len(self.texts)

    @property
    def repeats(self) -> bool:
        """Whether each distinct value occurs at least twice on average."""
        return 0 < 2 * self.distinct <= len(self.texts)

    @functools.cached_property
    def is_text(self) -> bool:
        """Whether the values may be texts, that is, strings other than numbers, codes or lists."""
        if not self.is_string or not self.texts or self.is_number or self.is_list:
            return False
        return not self.are_codes

    @functools.cached_property
    def are_codes(self) -> bool:
        """Whether all values are codes of letters and digits, such as "r2d2"."""
        is_code = (_CODE.fullmatch(t) and not _UNSPACED.search(t) for t in self.counts)
        return len(self.texts) > 2 and all(is_code)

    @functools.cached_property
    def is_prose(self) -> bool:
        """Whether the values are varied texts of three or more words on average, mostly letters."""
        if not self.is_text or self.mean_words < 3 or self.is_categorical:
            return False
        characters = "".join(self.texts[:_COUNTED])
        return 2 * sum(map(str.isdigit, characters)) < sum(map(str.isalnum, characters))

    @functools.cached_property
    def is_list(self) -> bool:
        """Whether any value is a list, or all values but blank ones are in square brackets."""
        return self.has_lists or (
            bool(self.texts) and all(t[0] == "[" and t[-1] == "]" for t in self.counts)
        )

    @property
    def may_be_label(self) -> bool:
        """Whether the values may be labels.

        Prose, lists and objects may not be labels, nor may ten or more row numbers.
        """
        short = bool(self.texts) and not (self.is_prose or self.is_list or self.has_objects)
        return short and not (self.is_index and len(self.texts) >= 10)

    def fits(self, kind: str) -> bool:
        """Returns whether the values may be labels of a kind, "class", "number" or "list"."""
        if kind == "number":
            return self.is_number and not self.is_index
        return (kind == "list" and self.is_list) or (
            self.may_be_label and (self.is_categorical or not self.has_fractions)
        )

    @property
    def is_label(self) -> bool:
        """Whether the values are clearly labels, that is, vary, repeat and are rarely blank."""
        filled = self.distinct > 1 and 20 * self.blanks <= len(self.texts)
        return self.is_label_candidate and self.repeats and filled

    @property
    def is_label_candidate(self) -> bool:
        """Whether the column is a candidate for the label if there are several columns.

        A column of dates, row numbers, unique values or mostly blank values is not.
        """
        if not self.fits("class") or self.is_index or self.blanks > len(self.texts):
            return False
        are_different = self.distinct == len(self.texts) and (self.distinct > 9 or self.are_codes)
        return not are_different and not all(map(_DATE.match, self.counts))

    @functools.cached_property
    def is_binary(self) -> bool:
        """Whether all values are 0 or 1."""
        return self._all_values_in("0", "1", "0.0", "1.0")

    @property
    def is_nearly_binary(self) -> bool:
        """Whether the values are numbers and, apart from -1, over nine in ten are 0 or 1."""
        bits = sum(self.counts[value] for value in ("0", "1", "0.0", "1.0"))
        others = len(self.texts) - self.counts["-1"] - self.counts["-1.0"] - bits
        return self.is_number and bits > 9 * others

    @functools.cached_property
    def is_boolean(self) -> bool:
        """Whether all values are true or false."""
        return self._all_values_in("true", "false")

    def _all_values_in(self, *values: str) -> bool:
        return (
            bool(self.texts) and not self.blanks and {t.lower() for t in self.counts} <= {*values}
        )


def guess_texts(
    profiles: "Mapping[Key, Profile]", min_texts: int, max_texts: int
) -> "list[Key] | None":
    """Returns the keys of the columns that are clearly texts, in order.

    Returns:
        List of `min_texts` to `max_texts` keys, or None if it is not clear which columns are texts.
    """
    prose = [key for key, profile in profiles.items() if profile.is_prose]
    if len(prose) >= min_texts:
        return prose if len(prose) <= max_texts else None
    words = {key: profile for key, profile in profiles.items() if profile.is_text}
    if len(words) == min_texts:
        return list(words)
    different = [key for key, profile in words.items() if not profile.repeats]
    longest = sorted(words, key=lambda key: -words[key].mean_words)[:min_texts]
    for keys in (different, sorted(longest, key=list(words).index)):
        if min_texts <= len(keys) <= max_texts and _are_clear(keys, words):
            return keys
    return None


def _are_clear(keys, profiles):
    """Returns whether the columns `keys` have longer or far more varied texts than the others."""
    others = [profile for key, profile in profiles.items() if key not in keys]
    return all(
        (
            profiles[key].mean_words >= 1.5 * other.mean_words
            and profiles[key].distinct >= other.distinct
        )
        or (
            profiles[key].mean_words >= other.mean_words
            and profiles[key].distinct >= 4 * other.distinct
        )
        for key in keys
        for other in others
    )


def guess_label(profiles: "Mapping[Key, Profile]", kind: str) -> "Key | None":
    """Returns the key of the column that is clearly the label; None if no column is."""
    if kind == "number":
        numbers = [key for key, profile in profiles.items() if profile.fits(kind)]
        fractions = [key for key in numbers if profiles[key].has_fractions]
        return _only_key(fractions if len(numbers) > 1 else numbers)
    lists = [key for key, profile in profiles.items() if profile.is_list]
    if kind == "list" and lists:
        return _only_key(lists)
    if len(profiles) == 1:
        return _only_key([key for key, profile in profiles.items() if profile.may_be_label])
    key = _only_key([key for key, profile in profiles.items() if profile.is_label_candidate])
    return key if key is not None and profiles[key].is_label else None


def _only_key(keys):
    return keys[0] if len(keys) == 1 else None
