"""Defines the examples of all tasks, opens their files, and converts records of texts and tags.

`kbert.data.records` and `tables` read the formats, `kbert.data.columns` finds the columns, and
`kbert.tasks.examples` reads whole files.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kbert.data import records as sources
from kbert.data import validation
from kbert.data.columns import count_text
from kbert.data.records import BadExample, value_text
from kbert.data.tables import read_table
from kbert.errors import UserError
from kbert.fields import is_text
from kbert.utils.input_files import plain_name, read_text

if TYPE_CHECKING:
    from kbert.data.columns import Columns
    from kbert.data.records import Record, Records

_SAMPLE_FOLDER = pathlib.Path(__file__).parent.parent / "corpus" / "sample"
SAMPLES = {
    f"sample:authors_{name}": _SAMPLE_FOLDER / f"authors_{name}.tsv.gz"
    for name in ("train", "eval")
}


@dataclasses.dataclass(frozen=True, slots=True)
class TextExample:
    """One or two texts and a label.

    The label is a str (classify, pair), a float (regress), a tuple of str (multilabel), or None if
    the example is unlabeled. `where` is the file and line of the example, for messages.
    """

    where: str
    text: str
    text_pair: str | None = None
    label: str | float | tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TagExample:
    """The words of a sentence, and a tag for each word, or None if the example is unlabeled.

    `read_split` converts the tags of entities to IOB2 (B-X, I-X, O); see `to_iob2`.
    """

    where: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A span of the context; `start` is its offset in characters, or None if the file has none.

    The offset may be wrong: `kbert.data.squad.locate_answer` verifies it for training, and
    evaluation does not use it.
    """

    text: str
    start: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question about a context. Unlabeled and impossible questions have no answers."""

    where: str
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    is_impossible: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A text, its choices, and as `label` the index of the right choice, or None if unlabeled."""

    where: str
    text: str
    choices: tuple[str, ...]
    label: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingExample:
    """Texts to embed: either two texts with their similarity as `label`, or texts without a label.

    Texts without a label are an anchor, a similar text (the positive), and any number of dissimilar
    texts (the negatives).
    """

    where: str
    texts: tuple[str, ...]
    label: float | None = None


def read_label_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Returns label names in the order of their ids.

    Args:
        names: a sequence of names, comma-separated names, or the path of a file with one name per
            line.
    """
    origin = f"--label_names={names}"
    if isinstance(names, str) and os.path.isfile(names):
        origin, names = names, read_text(names).rstrip().split("\n")
        names = names if any(map(str.strip, names)) else []
    elif isinstance(names, str):
        if "," not in names and ("/" in names or names.endswith(".txt")):
            raise UserError(f"--label_names: there is no file {names}.")
        names = names.split(",") if names.strip() else []
    names = [validation.normalize_label(str(name).strip()) for name in names]
    if not names:
        raise UserError(
            f"{origin} has no label names. Add names, separated by commas or line breaks."
        )
    for number, name in enumerate(names):
        if not name:
            raise UserError(f"{origin}: label {number} (from 0) is empty.")
        if name in names[:number]:
            raise UserError(
                f"{origin}: {name!r} appears twice, as labels {names.index(name)} and {number}."
            )
    return tuple(names)


def source_format(source: str) -> str:
    """Returns "tfds", "arrow" (Parquet or Arrow), or the file extension: "csv" for a.csv.gz."""
    if source.startswith("tfds:"):
        return "tfds"
    return "arrow" if sources.arrow_sources(source) else plain_name(source).rpartition(".")[2]


def open_records(source: str, task: str, allow_tables: bool = True) -> "Records":
    """Returns the Records of a source.

    Args:
        source: path of a file, FOLDER or FOLDER:SPLIT of Hugging Face `datasets`, `tfds:NAME` or
            `tfds:NAME:SPLIT`.
        task: name of the task, for messages.
        allow_tables: whether the task reads tables; see `read_table`.
    """
    form, name = source_format(source), os.path.basename(source.rstrip("/"))
    if form == "tfds":
        return sources.read_tfds(source)
    if form == "arrow":
        return sources.read_arrow(sources.arrow_sources(source), name)
    if form in ("json", "jsonl", "ndjson"):
        return sources.read_json_lines(source, name)
    if form in ("tsv", "txt", "csv") and allow_tables:
        return read_table(source, name)
    tables = ".tsv, .txt, .csv, " if allow_tables else ""
    raise UserError(
        f"{source} must be a file that ends in {tables}.json, .jsonl or .ndjson (optionally "
        f"followed by .gz, .bz2, .xz or .zst), a Parquet or Arrow file, a folder of Hugging Face "
        f"datasets, or tfds:NAME, for the task {task}."
    )


def parse_text_example(
    columns: "Columns",
    label_of: Callable[[object, str], str | float | tuple[str, ...]],
    where: str,
    record: "Record",
) -> TextExample:
    """Returns the TextExample of a record; `label_of(value, where)` converts its label.

    Raises:
        BadExample: a value is missing or invalid.
    """
    validation.check_column_count(record, columns)
    text = validation.check_text(validation.get_value(record, columns.text), "the text")
    pair = label = None
    if columns.text_pair is not None:
        pair = validation.check_text(
            validation.get_value(record, columns.text_pair), "the second text"
        )
    if columns.label is not None:
        label = label_of(validation.get_value(record, columns.label), where)
    elif columns.one_hot:
        label = tuple(
            name
            for key, name in columns.one_hot
            if validation.parse_bit(validation.get_value(record, key), name)
        )
    return TextExample(where, text, pair, label)


def parse_tag_example(
    words_key: str | int, tags_key: str | int | None, where: str, record: "Record"
) -> TagExample:
    """Returns the TagExample of a record.

    Words and tags are lists, strings that contain a list in Python, JSON or NumPy syntax, or
    space-separated strings. If the words are a string, there may also be one tag per character.

    Raises:
        BadExample: words or tags are missing or invalid, or their numbers differ.
    """
    words = _parse_list(validation.get_value(record, words_key), r"\[['\"]")
    if tags_key is None:
        return TagExample(where, _check_words(words, words_key, "word"))
    tags = _parse_list(validation.get_value(record, tags_key), r"\[\s*['\"\d]")
    tags = _check_words(tags, tags_key, "tag")
    if isinstance(words, str) and len(words) == len(tags) != len(words.split()):
        words = list(words)
    words = _check_words(words, words_key, "word")
    if len(tags) != len(words):
        raise BadExample(f"{count_text(len(words), 'word')}, but {count_text(len(tags), 'tag')}")
    return TagExample(where, words, tags)


def _parse_list(value, begin):
    """Parses a string that is a list in Python, JSON or NumPy syntax; returns others unchanged."""
    has_list = isinstance(value, str) and re.match(begin, value)
    return (validation.parse_list(value) if has_list else None) or value


def _check_words(values, key, what):
    values = values.split() if isinstance(values, str) and " " in values else values
    if not isinstance(values, list):
        raise BadExample(f"{key!r} must be a list of {what}s; got {value_text(values)}")
    if not values:
        raise BadExample(f"there are no {what}s")
    if what == "tag":  # label ids; `--label_names` maps them to names
        values = [str(value) if type(value) is int else value for value in values]
    for number, value in enumerate(values):
        if value == "" or not is_text(value):
            raise BadExample(
                f"{what} {number} (from 0) must be a non-empty string; got {value_text(value)}"
            )
    return tuple(values)
