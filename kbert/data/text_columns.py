"""Finds the columns of texts and labels in a table, or in JSON lines, Parquet or TFDS.

The flags name the columns; other columns are found by known names or, failing that, by values that
are clearly texts or labels. An unclear case is an error, because a guess may be wrong.
"""

import dataclasses
import functools
import re
from typing import TYPE_CHECKING

from kbert.data.column_names import (
    KNOWN,
    LABELS,
    PAIRS,
    SCORES,
    SECOND_TEXTS,
    STANCES,
    TEXTS,
    TITLES,
    VAGUE_LABELS,
)
from kbert.data.column_profiles import Profile, guess_label, guess_texts
from kbert.data.columns import (
    Columns,
    check_column_count,
    checked_columns,
    column_of_flag,
    quote_names,
    split_flag,
    stated_header,
    to_flag,
)
from kbert.data.headers import UndecidedError, find_header, normalize_name
from kbert.data.records import BadExample, column_values, value_text
from kbert.errors import UserError

if TYPE_CHECKING:
    from typing import TypeAlias

    from kbert.data.records import Records
    from kbert.settings.tasks import ColumnConfig

    Key: TypeAlias = str | int

_PRODIGY_ANSWERS = {"accept", "reject", "ignore", None}  # values of "answer" in files of Prodigy
_ROLES = {"text": "the text", "text_pair": "the second text", "label": "the label"}
_ID = re.compile(r"(.*_|)(id|idx|index|uid|guid)|unnamed.*|")


@dataclasses.dataclass(frozen=True)
class TextRoles:
    """The texts and the label that a task reads.

    Attributes:
        texts: minimum and maximum number of texts.
        label: "class", "number" or "list" (of labels).
    """

    texts: tuple[int, int] = (1, 1)
    label: str = "class"


def find_text_columns(
    records: "Records", config: "ColumnConfig", labeled: bool, roles: TextRoles
) -> Columns:
    """Returns the Columns of a text task; removes the header row from the records of a table.

    Columns inferred from their values are reported in `records.notes`; `records.flags` is set to
    the flags that select the same columns. If `labeled`, rejected and ignored examples of Prodigy
    files are skipped.

    Raises:
        UserError: a column is missing or its name is ambiguous, two roles have the same column, or
            the flags contradict each other.
        UndecidedError: it is not clear whether there is a header, or which columns to read.
    """
    if config.label_columns and (roles.label != "list" or config.label_column):
        raise UserError(
            "--label_columns requires --task=multilabel and cannot be combined with --label_column."
        )
    check_column_count(records, roles.texts[0] + labeled)
    if labeled and records.width is None and config.label_column != "answer":
        _keep_accepted(records)
    rows = records.sample()
    if records.width is not None and _has_header(records, config, rows):
        records.take_header()
        del rows[0]
    return _ColumnFinder(records, config, rows, roles).columns(labeled)


def _keep_accepted(records):
    """Skips the examples of a Prodigy file that were not accepted; their "answer" is no label."""
    answers = {row.get("answer") for row in records.sample() if "_input_hash" in row}
    if not answers or not answers <= _PRODIGY_ANSWERS:
        return
    records.items = (
        item
        for item in records.items
        if isinstance(item[1], BadExample) or item[1].get("answer") in ("accept", None)
    )
    records.names = tuple(name for name in records.names if name != "answer")
    if answers - {"accept", None}:
        records.notes.append("examples whose answer is not 'accept' are skipped")


def _has_header(records, config, rows):
    columns = (config.text_column, config.text_pair_column, config.label_column)
    stated = stated_header(config, [*columns, *split_flag(config.label_columns)])
    if stated is not None:
        return stated
    signs = find_header(rows, KNOWN, records.name)
    if signs == "rows":
        records.notes.append(
            f"treating the first row as a header: {', '.join(map(value_text, rows[0][:20]))}; "
            f"if it is an example, set --header=no"
        )
    return signs is not None


def _is_short_text(profile):
    return profile.is_text and profile.mean_words >= 2 and profile.blanks <= len(profile.texts)


class _ColumnFinder:
    """Finds the columns of records; `rows` is a sample of the records."""

    def __init__(self, records, config, rows, roles):
        self.records, self.rows, self.roles = records, rows, roles
        keys = records.names if records.width is None else range(records.width)
        names = records.names or [""] * records.width
        self.names = {key: normalize_name(name) for key, name in zip(keys, names, strict=True)}
        self.profiles: dict[Key, Profile] = {}
        find = functools.partial(column_of_flag, records)
        self.text = find("text_column", config.text_column)
        self.text_pair = find("text_pair_column", config.text_pair_column)
        self.label = find("label_column", config.label_column)
        self.labels = [find("label_columns", part) for part in split_flag(config.label_columns)]
        self.inferred: list[str] = []

    def columns(self, labeled: bool) -> Columns:
        wants_label = labeled and self.label is None and not self.labels
        if wants_label:
            self._find_known_label()
        given = self._keys()
        self._find_texts()
        if not labeled:
            self.label, self.labels = None, []
        elif wants_label and self.label is None:
            self._find_label()
        if self.labels and self.records.names is None:
            raise UserError(
                f"--label_columns takes the label names from the header, but {self.records.name} "
                f"is read without one. If its first row is a header, add --header=yes."
            )
        self._report()
        return checked_columns(
            self.records,
            self._keys(),
            allow_extra=set(self._keys()) <= set(given),
            text=self.text,
            text_pair=self.text_pair,
            label=self.label,
            one_hot=tuple((key, self._name(key)) for key in self.labels),
        )

    def _find_texts(self):
        """Finds the text columns that no flag names, by known names or else by their values."""
        min_texts, max_texts = self.roles.texts
        is_given, free = self.text is not None, self._free_columns()
        if max_texts == 2 and not is_given and self.text_pair is None:
            keys = {self.names[key]: key for key in free}
            pairs = [pair for pair in PAIRS if keys.keys() >= set(pair)]
            for first, second in pairs[:1]:
                self.text, self.text_pair = keys[first], keys[second]
        if self.text is None:
            self.text = self._find_known_text(TEXTS)
        second = self._find_known_text(SECOND_TEXTS) if self.text_pair is None else None
        if max_texts == 2:
            self.text_pair = self.text_pair if second is None else second
        elif second is not None and not is_given:
            raise self._undecided_error("text")  # the file may have pairs of texts
        texts = sum(key is not None for key in (self.text, self.text_pair))
        if self.text is None or texts < min_texts:
            self._guess_texts(max(min_texts - texts, 1), max(max_texts - texts, 1))

    def _guess_texts(self, min_texts, max_texts):
        keys = guess_texts(self._free_columns(), min_texts, max_texts)
        if keys is None:
            raise self._undecided_error("text" if self.text is None else "text_pair")
        others = [p for key, p in self._free_columns().items() if key not in keys]
        if (
            self.roles.texts == (1, 2)
            and len(keys) < max_texts
            and any(map(_is_short_text, others))
        ):
            raise self._undecided_error("text")  # one of `others` may be the second text
        for key in keys:
            role = "text" if self.text is None else "text_pair"
            setattr(self, role, key)
            self.inferred.append(role)

    def _find_known_label(self):
        free = self._free_columns()
        if self.roles.label == "list" and sum(p.is_binary for p in free.values()) > 1:
            free = {key: profile for key, profile in free.items() if not profile.is_binary}
        tiers = LABELS[self.roles.label]
        for names in tiers:
            known = {key: p for key, p in free.items() if self.names[key] in names}
            fitting = [key for key, profile in known.items() if profile.fits(self.roles.label)]
            if len(known) > 1:
                if len(fitting) != 1:
                    raise self._undecided_error("label")
                self.inferred.append("label")
                self.label = fitting[0]
            elif known and (fitting or names not in (STANCES, tiers[-1])):  # else it may be a text
                if names is tiers[-1] and self._has_rival(*known):
                    raise self._undecided_error("label")
                self.label = next(iter(known))
            if self.label is not None:
                return

    def _has_rival(self, label):
        """Returns whether the name of `label` is vague and another column could be the label."""
        profile, name = self._profile(label), self.names[label]
        others = {key: p for key, p in self._free_columns().items() if key != label}
        if self.roles.label == "list":
            return not profile.is_list and sum(p.is_binary for p in others.values()) > 1
        is_sure = name not in VAGUE_LABELS or profile.is_binary or self.roles.label == "number"
        if is_sure or (profile.is_number and name not in SCORES):
            return False
        return any(
            p.is_label and p.distinct <= 50
            for key, p in others.items()
            if not p.is_number or (p.is_binary and not profile.is_number)
            if not self.names[key].endswith(("id", "idx", "index"))  # such as "ProductId"
        )

    def _find_label(self):
        """Finds the label column by its values."""
        has_names = self.records.names is not None
        free = self._free_columns()
        if has_names:
            free = {key: p for key, p in free.items() if not _ID.fullmatch(self.names[key])}
        if self.roles.label == "list" and has_names:
            # Other values than 0 and 1 are allowed here, so that they are reported as errors later.
            for values in ("is_nearly_binary", "is_boolean"):
                self.labels = [key for key, p in free.items() if getattr(p, values)]
                if len(self.labels) > 1:
                    self.inferred.append("labels")
                    return
            self.labels = []
        is_cola = self.records.width == 4 and free.keys() == {0, 1, 2}
        if is_cola and free[1].is_binary and free[2].counts.keys() <= {"*"}:
            self.label = 1
        else:
            has_commas = any(p.has_decimal_commas for p in free.values())
            is_clear = self.roles.label != "number" or not has_commas
            self.label = guess_label(free, self.roles.label) if is_clear else None
        if self.label is None:
            raise self._undecided_error("label")
        self.inferred.append("label")

    def _find_known_text(self, tiers):
        """Returns the key of a text column with a known name of the earliest tier, or None."""
        for names in tiers:
            known = {key: p for key, p in self._free_columns().items() if self.names[key] in names}
            if len(known) > 1:
                keys = guess_texts(known, 1, 1)
                if keys is None:
                    raise self._undecided_error("text")
                self.inferred.append("text")
                return keys[0]
            if known:
                key = next(iter(known))
                free = self._free_columns()
                if self.names[key] in TITLES and guess_texts(free, 1, 1) not in ([key], None):
                    raise self._undecided_error("text")
                return key
        return None

    def _keys(self):
        keys = [self.text, self.text_pair, self.label, *self.labels]
        return [key for key in keys if key is not None]

    def _free_columns(self):
        """Returns a dict of key -> Profile of the columns that have no role yet."""
        width = self.records.width
        used = [key if width is None else key % width for key in self._keys()]
        return {key: self._profile(key) for key in self.names if key not in used}

    def _profile(self, key):
        if key not in self.profiles:
            self.profiles[key] = Profile(column_values(self.rows, key))
        return self.profiles[key]

    def _name(self, key):
        return key if self.records.width is None else (self.records.names or range(key + 1))[key]

    def _columns_text(self, keys):
        names = [self._name(key) for key in (keys if isinstance(keys, list) else [keys])]
        return ", ".join(map(str, names)) if self.records.names is None else quote_names(names)

    def _undecided_error(self, role):
        flags = f"--{role}_column"
        if role == "text" and self.roles.texts == (1, 1):
            flags += "; to read two texts, use --task=pair or add --text_pair_column"
        elif role == "text":
            flags += " and --text_pair_column"
        elif self.roles.label == "list":
            flags += ", or name columns of 0 and 1 with --label_columns"
        if self.records.names is None:
            cells = enumerate(self.rows[0][:20] if self.rows else [])
            columns = ", ".join(f"{column} ({value_text(cell)})" for column, cell in cells)
            columns = f"its columns, without a header, are {columns}"
        else:
            columns = f"it has {quote_names(self.records.names)}"
        return UndecidedError(
            f"{self.records.name}: it is not clear which column is {_ROLES[role]}; {columns}. Set "
            f"{flags}."
        )

    def _report(self):
        """Stores the flags that select the columns, and a note on columns found by their values."""
        records = self.records
        if self.inferred:
            roles = {role: getattr(self, role) for role in self.inferred}
            columns = [
                f"{role.replace('text_pair', 'second text')} {self._columns_text(keys)}"
                for role, keys in roles.items()
            ]
            flags = [f"--{role}_column".replace("labels_column", "label_columns") for role in roles]
            records.notes.append(
                f"columns found by their values: {', '.join(columns)}; set {', '.join(flags)} to "
                f"choose others"
            )
        flags = {f"{role}_column": getattr(self, role) for role in ("text", "text_pair", "label")}
        records.flags = {flag: None if key is None else str(key) for flag, key in flags.items()}
        records.flags["label_columns"] = to_flag(self.labels) or None
        if records.width is not None:
            records.flags["header"] = "no" if records.names is None else "yes"
