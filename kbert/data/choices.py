"""Reads multiple-choice questions from tables, SWAG, RACE, CommonsenseQA, ARC and other files."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kbert.data import validation
from kbert.data.columns import (
    Columns,
    check_column_count,
    checked_columns,
    column_of_flag,
    find_column,
    quote_names,
    split_flag,
    stated_header,
)
from kbert.data.examples import ChoiceExample
from kbert.data.records import BadExample, Records, column_values, value_text
from kbert.errors import UserError

if TYPE_CHECKING:
    from kbert.data.records import Record
    from kbert.settings.tasks import ColumnConfig

# Names of the text column in lower case, in the order in which they are tried.
_TEXTS = ("article", "context", "passage", "sent1", "ctx", "premise", "story", "paragraph")
_TEXTS += ("dialogue", "dialog", "document", "background", "support", "text", "prompt")
_TEXTS += ("sentence", "goal")
# Names of the question column. The question is prepended to each choice if there is also a column
# with a name in _TEXTS; otherwise, it is the text.
_QUESTIONS = ("question", "sent2", "question_stem", "stem", "query", "asks_for", "asks-for")
_LABELS = ("label", "labels", "answer", "answerkey", "answer_key", "answers", "correct")
_LABELS += ("correct_answer", "correct answer", "correct_option", "correct_choice", "cop", "gold")
_LABELS += ("gold_label", "answer_index", "answer_idx", "correct_index", "key", "target")
_LABELS += ("class", "category", "score", "quality", "similarity")
_LISTS = ("choices", "options", "endings", "answers", "candidates")
_PREFIXES = ("choice", "ending")
# One of these names in the first row of a table suffices to recognize a header.
_HEADER = {"text", "sentence", "sentence1", "text_a", "question", "premise", "question1", "review"}
_HEADER |= {"title", "content", "text_pair", "sentence2", "text_b", "hypothesis", "question2"}
_HEADER |= {"label", "labels", "class", "category", "score", "quality", "target", "similarity"}
_NUMBERED = re.compile(r"(choice|ending|option|answer|sol|op|opt)[ _-]?([a-j]|\d{1,2})")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_NUMBER = re.compile(r"(\d{1,3})(\.0)?")
# The ways in which a label may identify a choice, with their names in messages. A letter has the
# same meaning for "0" and "1".
_MEANINGS = {
    "name": "the name",
    "text": "the text",
    "0": "the letter or number (from 0)",
    "1": "the letter or number (from 1)",
}


def choice_records(
    records: Records, config: "ColumnConfig", labeled: bool
) -> "tuple[Records, ChoiceConverter]":
    """Returns records without their header, and the function that converts them to examples."""
    if records.width is not None and _has_header(records, config):
        records.take_header()
    records = _flatten_records(records)
    columns = _find_columns(records, config, labeled)
    if unread := _unread_columns(records, columns):
        records.notes.append(
            f"columns not read: {quote_names(unread)}; to read one, set --text_column or "
            f"--text_pair_column"
        )
    keys = columns.choices if records.names else ()
    names = [records.names[key] if isinstance(key, int) else key for key in keys]
    converter = ChoiceConverter(columns, names)
    if labeled:
        items = list(records.items)
        records = dataclasses.replace(records, items=iter(items))
        all_records = [record for _, record in items]
        meaning = converter.infer_meaning(all_records, config.first_choice, records.name)
        records.notes.append(f"interpreting each label as {_MEANINGS[meaning]} of the right choice")
    return records, converter


def _has_header(records, config):
    """Returns whether the first row of a table is a header, by the flags or else by its cells."""
    flags = [config.text_column, config.text_pair_column, config.label_column]
    flags += split_flag(config.choice_columns)
    stated = stated_header(config, flags)
    if stated is not None:
        return stated
    names = [cell.strip().lower() for cell in records.sample(1)[0]]
    if len(_numbered_columns(names)) > 1 and not {*_TEXTS, *_QUESTIONS}.isdisjoint(names):
        return True
    # If flags give columns by number, one known name is no evidence: "question" may be an example.
    return sum(name in _HEADER for name in names) >= (2 if any(flags) else 1)


def _find_columns(records, config, labeled):
    """Returns the Columns, by the flags or else by usual names."""
    names = [name.lower() for name in records.names or ()]
    stem, label = config.text_pair_column, config.label_column
    if stem is None and not config.text_column and {*names} & {*_TEXTS}:
        stem = next((name for name in _QUESTIONS if name in names), None)
    if labeled and label is None:
        label = next((name for name in _LABELS if name in names), None)
    fields = {
        "text": find_column(records, "text_column", config.text_column, (*_TEXTS, *_QUESTIONS)),
        "text_pair": column_of_flag(records, "text_pair_column", stem),
        "label": find_column(records, "label_column", label, _LABELS, -1) if labeled else None,
    }
    choices = _find_choices(records, config, label)
    used = [column for column in fields.values() if column is not None] + list(choices)
    check_column_count(records, len(used))
    return checked_columns(records, used, **fields, choices=choices)


def _find_choices(records, config, label):
    """Returns the columns of the choices, or a single one with all; `label` is not among them."""
    if given := split_flag(config.choice_columns):
        return tuple(column_of_flag(records, "choice_columns", part) for part in given)
    if records.names is None:
        raise UserError(
            f"{records.name} is read without a header, so the choice columns must be given by "
            f"number: --choice_columns=1,2,3."
        )
    names = ["" if name.lower() == label else name.lower() for name in records.names]
    places = _numbered_columns(names)
    if len(places) < 2:
        if single := next((name for name in _LISTS if name in names), None):
            return (column_of_flag(records, "choice_columns", single),)
        places = [i for i, name in enumerate(names) if name.startswith(_PREFIXES)]
    if not places:
        raise UserError(
            f"{records.name} has no column whose name starts with choice or ending; it has "
            f"{quote_names(records.names)}. Name the columns with --choice_columns."
        )
    return tuple(records.names[i] if records.width is None else i for i in places)


def _numbered_columns(names):
    """Returns the indices of columns with names such as a, b, ... or choice0, choice1, ..."""
    letters = [place for place, name in enumerate(names) if re.fullmatch("[a-j]", name)]
    if len(letters) > 1 and {"a", "b"} <= {names[place] for place in letters}:
        return letters
    groups = collections.defaultdict(list)
    for place, name in enumerate(names):
        if match := _NUMBERED.fullmatch(name):
            groups[match[1].replace("ending", "choice")].append(place)
    return max(groups.values(), key=len, default=[])


def _unread_columns(records, columns):
    """Returns the names of unread columns that have four or more words per value on average."""
    sample = records.sample(100)
    used = {columns.text, columns.text_pair, columns.label, *columns.choices}
    keys = [name if records.width is None else i for i, name in enumerate(records.names or ())]
    unread = []
    for key in keys:
        values = column_values(sample, key)
        words = [len(value.split()) for value in values if isinstance(value, str)]
        if key not in used and sum(words) >= 4 * len(sample) > 0:
            unread.append(records.names[key] if isinstance(key, int) else key)
    return unread


def _flatten_records(records):
    """Splits records of several questions; moves nested questions and choices to top-level keys."""
    items = (item for where, record in records.items for item in _flatten_item(where, record))
    records = dataclasses.replace(records, items=items)
    if records.width is None and (sample := records.sample()):
        records.names = tuple(sample[0])
    return records


def _flatten_item(where, record) -> "Iterator[tuple[str, Record | BadExample]]":
    if not isinstance(record, dict):
        yield where, record
        return
    if isinstance(record.get("questions"), list):  # RACE: an article with several questions
        lists = [record["questions"], record.get("options"), record.get("answers")]
        lists[2] = lists[2] if "answers" in record else [None] * len(lists[0])
        if not all(isinstance(x, list) and len(x) == len(lists[0]) for x in lists):
            problem = '"questions", "options" and "answers" must be lists of equal length'
            yield where, BadExample(problem)
            return
        for number, (question, options, answer) in enumerate(zip(*lists, strict=True), 1):
            row = {"question": question, "options": options, "answer": answer}
            yield f"{where}, question {number}", {"article": record.get("article")} | row
        return
    question = record.get("question")
    if isinstance(question, dict):  # CommonsenseQA and ARC
        own = {"question": question.get("stem"), "choices": question.get("choices")}
        record = {**record, **own}
    yield where, record


class ChoiceConverter:
    """Converts records to ChoiceExamples, which must all have the same number of choices.

    For labeled records, first call `infer_meaning`, which infers from all of them how a label
    identifies the right choice.

    Args:
        columns: the columns of the records.
        names: names of the choice columns; empty if a single column has all choices.
    """

    def __init__(self, columns: Columns, names: Sequence[str] = ()):
        self.columns: Columns = columns
        self.names: Sequence[str] = names
        self.number_of_choices: int | None = None  # of the first example
        self._meaning = "0"

    def infer_meaning(
        self, records: "Sequence[Record | BadExample]", first_choice: str, name: str
    ) -> str:
        """Infers the meaning of the labels of a file; returns a key of `_MEANINGS`."""
        rows = [row for record in records if (row := self._label_meanings(record)) is not None]
        meanings = [m for m in _MEANINGS if first_choice == "auto" or m not in "01"]
        meanings += [] if first_choice == "auto" else [first_choice]
        counts = {m: sum(m in indices for _, indices in rows) for m in meanings}
        best = [m for m in meanings if counts[m] == max(counts.values())]
        unclear = [
            (label, indices) for label, indices in rows if len({indices.get(m) for m in best}) > 1
        ]
        preferred = [
            "name",
            first_choice,
            "0" if any(name.endswith("0") for name in self.names) else None,
        ]
        if not any(counts.values()):
            preferred = [first_choice, "0"]
        self._meaning = next((m for m in preferred if m in best), best[0])
        if unclear and self._meaning not in preferred:
            label, indices = unclear[0]
            ways = " or ".join(_MEANINGS[m] for m in best if m in indices)
            raise UserError(
                f"{name}: the label {value_text(label)} is ambiguous: it may be {ways} of the "
                f"right choice, and the other labels do not settle it. Set --first_choice to the "
                f"number of the first choice, 0 or 1, or write letters, A, B and so on."
            )
        return self._meaning

    def _label_meanings(self, record):
        """Returns a label and a dict of meaning -> index of the choice; None for a bad record."""
        try:
            if isinstance(record, BadExample):
                return None
            choices, names = self._choices(record)
            label = validation.label_name(validation.get_value(record, self.columns.label))
            return label, _meanings(label, choices, names)
        except (BadExample, IndexError):
            return None

    def __call__(self, where: str, record: "Record") -> ChoiceExample:
        """Returns the ChoiceExample of a record; raises BadExample if it is invalid."""
        columns = self.columns
        validation.check_column_count(record, columns)
        text = validation.get_value(record, columns.text)
        if isinstance(text, list) and all(isinstance(line, str) for line in text):
            text = " ".join(text)  # the turns of a dialogue
        text = validation.check_text(text, "the text")
        choices, names = self._choices(record)
        for number, choice in enumerate(choices):
            validation.check_text(choice, f"choice {number} (from 0)")
        if len(choices) < 2:
            raise BadExample(f"there must be at least two choices; got {len(choices)}")
        if len(choices) != (self.number_of_choices or len(choices)):
            expected = self.number_of_choices
            raise BadExample(f"got {len(choices)} choices; the first example has {expected}")
        label = None
        if columns.label is not None:
            label = self._label_index(validation.get_value(record, columns.label), choices, names)
        if columns.text_pair is not None:
            stem = validation.get_value(record, columns.text_pair)
            choices = [f"{stem} {choice}" if stem else choice for choice in choices]
        self.number_of_choices = len(choices)
        return ChoiceExample(where, text, tuple(choices), label)

    def _choices(self, record):
        """Returns the choices of a record and their names, from the columns or the record."""
        keys = self.columns.choices
        values = [validation.get_value(record, key) for key in keys]
        if len(keys) > 1:
            return values, self.names
        value = values[0]
        if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
            value = validation.parse_literal(value.strip(), value)
        if isinstance(value, dict) and isinstance(value.get("text"), list):
            return value["text"], _strings(value.get("label"))
        if isinstance(value, list) and all(isinstance(x, dict) and "text" in x for x in value):
            return [x["text"] for x in value], _strings([x.get("label") for x in value])
        return (value if isinstance(value, list) else values), []

    def _label_index(self, value, choices, names):
        """Returns the index of the right choice."""
        label = validation.label_name(value)
        index = _meanings(label, choices, names).get(self._meaning)
        if index is None:
            first = int(self._meaning == "1")
            last = first + len(choices) - 1
            expected = {
                "name": f"one of {', '.join(names)}",
                "text": "the text of one choice",
            }.get(self._meaning, f"in [{first}, {last}], or a letter")
            raise BadExample(f"the label must be {expected}; got {value_text(label)}")
        return index


def _meanings(label, choices, names):
    """Returns a dict of each possible meaning of a label -> index of the choice that it selects."""
    lower = [name.lower() for name in names]
    texts = [choice.strip() if isinstance(choice, str) else choice for choice in choices]
    indices = {}
    if label in names or lower.count(label.lower()) == 1:
        indices["name"] = names.index(label) if label in names else lower.index(label.lower())
    if texts.count(label) == 1:
        indices["text"] = texts.index(label)
    letter, number = _LETTER.fullmatch(label), _NUMBER.fullmatch(label)
    for first in (0, 1):
        index = ord(letter[1].upper()) - ord("A") if letter else -1
        index = int(number[1]) - first if number else index
        if 0 <= index < len(choices):
            indices[str(first)] = index
    return indices


def _strings(values):
    return [str(value) for value in values] if isinstance(values, list) else []
