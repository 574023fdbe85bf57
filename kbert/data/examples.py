"""Examples of the tasks, read from files and TFDS and checked one by one.

`kbert.data.records` reads the formats, `kbert.data.columns` finds what is in which column; here
records become the examples that tasks learn from; `kbert.tasks.examples` reads whole files.
"""

import dataclasses
import os
import pathlib

from kbert.data import records as sources
from kbert.data import validation
from kbert.data.columns import count
from kbert.data.records import BadExample, shown
from kbert.data.squad import checked_answers
from kbert.errors import UserError

_SAMPLE_FOLDER = pathlib.Path(__file__).parent.parent / "corpus" / "sample"
SAMPLES = {
    f"sample:authors_{name}": _SAMPLE_FOLDER / f"authors_{name}.tsv.gz"
    for name in ("train", "eval")
}


@dataclasses.dataclass(frozen=True, slots=True)
class TextExample:
    """A text or two, and a label: str (classify, pair), float (regress), tuple of str (multilabel).

    `where` names the file and line of any example, for messages. Unlabelled: label is None.
    """

    where: str
    text: str
    text_pair: str | None = None
    label: str | float | tuple | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TagExample:
    """The words of a sentence and their tags, as tuples: IOB2 (B-X, I-X, O), or plain ones."""

    where: str
    words: tuple
    tags: tuple | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A stretch of the context; `start` in characters of it."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question about a context. No answers where it is unlabelled or impossible."""

    where: str
    id: str
    question: str
    context: str
    answers: tuple = ()
    is_impossible: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A text, its choices (tuple of str), and the number of the right one, from 0."""

    where: str
    text: str
    choices: tuple
    label: int | None = None


def read_label_names(text):
    """Names of labels (tuple of str) in the order of their numbers.

    Args:
        text: comma-separated names, or the path of a file with one a line.

    Raises:
        UserError: there is none, one is empty, or one is there twice.
    """
    if os.path.isfile(text):
        lines = [line for _, line in sources.read_lines(text)]
        if not all(map(sources.is_utf8, lines)):
            raise UserError(f"{text}: bytes that are not UTF-8. Save it as UTF-8.")
        origin, names = text, [line.strip() for line in lines]
    else:
        if "," not in text and ("/" in text or text.endswith(".txt")):
            raise UserError(f"--label_names: there is no file {text}.")
        origin = f"--label_names={text}"
        names = [name.strip() for name in text.split(",")] if text.strip() else []
    if not names:
        raise UserError(f"{origin} names no label. Write them comma-separated, or one a line.")
    for number, name in enumerate(names):
        if not name:
            raise UserError(f"{origin}: label {number} (from 0) is empty.")
        if name in names[:number]:
            raise UserError(f"{origin}: {name!r} is there twice, at {names.index(name)}, {number}.")
    return tuple(names)


def form_of(source):
    """The format of a source, by its name: tfds, or the ending of a file without .gz."""
    return "tfds" if source.startswith("tfds:") else sources.plain_name(source).rpartition(".")[2]


def open_records(source, task, has_header):
    """The Records of a source.

    Args:
        source: path, or a name that begins with tfds:. task: its name, for messages.
        has_header: function of the first row of a table: whether it is a header; None: the task
            reads no tables.

    Raises:
        UserError: it has no such format, or cannot be read.
    """
    form, name = form_of(source), os.path.basename(source)
    if form == "tfds":
        return sources.tfds(source)
    if form in ("json", "jsonl"):
        return sources.json_lines(source, name)
    if form in ("tsv", "txt", "csv") and has_header:
        return sources.table(source, name, has_header)
    tables = ".tsv, .txt, .csv, " if has_header else ""
    raise UserError(
        f"{source} must be a file that ends in {tables}.json or .jsonl (or one of these and "
        f".gz), or tfds:NAME, for the task {task}."
    )


def with_ids(records):
    """Records whose questions have an id, be it their number, which `where` then names."""

    def items():
        for number, (where, record) in enumerate(records.items, 1):
            if isinstance(record, dict) and "id" in record:
                yield f"{where} (question {record['id']})", record
            else:
                yield where, ({"id": number} | record) if isinstance(record, dict) else record

    return dataclasses.replace(records, items=items())


def text_example(columns, label_of, where, record):
    """The TextExample of a record. label_of: function of the label's value and of `where`."""
    validation.check_width(record, columns)
    text = validation.text(validation.part(record, columns.text), "the text")
    pair = label = None
    if columns.text_pair is not None:
        pair = validation.text(validation.part(record, columns.text_pair), "the second text")
    if columns.label is not None:
        label = label_of(validation.part(record, columns.label), where)
    return TextExample(where, text, pair, label)


class ChoiceMaker:
    """Makes ChoiceExamples of records, all with as many choices."""

    def __init__(self, columns):
        self.columns = columns
        self.number_of_choices = None  # of the first example

    def __call__(self, where, record):
        columns = self.columns
        validation.check_width(record, columns)
        text = validation.text(validation.part(record, columns.text), "the text")
        choices = [validation.part(record, key) for key in columns.choices]
        if len(choices) == 1 and isinstance(choices[0], list):
            choices = choices[0]
        for number, choice in enumerate(choices):
            validation.text(choice, f"choice {number} (from 0)")
        if len(choices) < 2:
            raise BadExample(f"there must be two choices or more; got {len(choices)}")
        if len(choices) != (self.number_of_choices or len(choices)):
            expected = self.number_of_choices
            raise BadExample(f"{len(choices)} choices came; the first example has {expected}")
        label = None
        if columns.label is not None:
            label = self._label(validation.part(record, columns.label), choices)
        self.number_of_choices = len(choices)
        return ChoiceExample(where, text, tuple(choices), label)

    def _label(self, value, choices):
        """Number of the right choice, from its number, its text, or the name of its column."""
        label = validation.label_name(value)
        matches = {i for i, choice in enumerate(choices) if choice.strip() == label}
        matches |= {i for i, key in enumerate(self.columns.choices) if key == label}
        if label.isdecimal() and len(label) < 10 and int(label) < len(choices):
            matches.add(int(label))
        if len(matches) > 1:
            raise BadExample(
                f"the label {shown(label)} stands for choices {sorted(matches)} (from 0)"
            )
        if not matches:
            raise BadExample(
                f"the label must be in [0, {len(choices) - 1}], or the text of a choice; got "
                f"{shown(label)}"
            )
        return matches.pop()


def tag_example(words_key, tags_key, where, record):
    """The TagExample of a record. tags_key: None if it is not labelled."""
    words = _texts(record, words_key, "word")
    if tags_key is None:
        return TagExample(where, words)
    tags = _texts(record, tags_key, "tag")
    if len(tags) != len(words):
        raise BadExample(f"{count(len(words), 'word')}, but {count(len(tags), 'tag')}")
    return TagExample(where, words, tags)


def _texts(record, key, what):
    values = validation.part(record, key)
    if not isinstance(values, list):
        raise BadExample(f"{key!r} must be a list of {what}s; got {shown(values)}")
    if not values:
        raise BadExample(f"there are no {what}s")
    for number, value in enumerate(values):
        if value == "" or not isinstance(value, str) or not sources.is_utf8(value):
            raise BadExample(f"{what} {number} (from 0) must be a text; got {shown(value)}")
    return tuple(values)


class QuestionMaker:
    """Makes QuestionExamples of records, each with an id of its own."""

    def __init__(self, labelled):
        self.labelled = labelled
        self.ids = set()

    def __call__(self, where, record):
        identity = str(validation.part(record, "id"))
        if identity in self.ids:
            raise BadExample(f"the id {identity} is that of an earlier question")
        self.ids.add(identity)
        question = validation.text(validation.part(record, "question"), "the question")
        context = validation.text(validation.part(record, "context"), "the context")
        if not self.labelled:
            return QuestionExample(where, identity, question, context)
        validation.part(record, "answers")
        answers, impossible = checked_answers(record, context)
        answers = tuple(Answer(text, start) for text, start in answers)
        return QuestionExample(where, identity, question, context, answers, impossible)
