"""Examples of the tasks, read from files and TFDS and checked one by one.

`kbert.data.records` reads the formats, `kbert.data.columns` finds what is in which column; here
records become the examples that tasks learn from.
"""

import dataclasses
import os
import pathlib

from kbert.data import records as sources
from kbert.data import validation
from kbert.data.columns import count, find_columns, has_header, tag_keys
from kbert.data.conll import conll, to_iob2
from kbert.data.records import BadExample, shown
from kbert.data.squad import checked_answers, squad
from kbert.errors import UserError, one_line

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


def read_examples(source, config, labelled=True, report=print):
    """The examples of a file, plain or .gz, or of `tfds:NAME` or `tfds:NAME:SPLIT`.

    Args:
        source: path, a name that begins with tfds:, or one of `SAMPLES`, which come with kbert:
            who wrote this? (task classify, label_column author).
        config: ExampleConfig, or what has its fields task, text_column, text_pair_column,
            label_column, choice_columns, header and skip_bad_lines.
        labelled: False: labels are neither needed nor read.
        report: called with a line that tells how many examples were left out, if any.

    Returns:
        List of TextExample (tasks classify, pair, regress, multilabel), TagExample (tag),
        QuestionExample (qa) or ChoiceExample (choice), in the order of the source.

    Raises:
        UserError: the source cannot be read, has no example, or one of them cannot be used and
            `skip_bad_lines` is off.
    """
    records, make = _reader(str(SAMPLES.get(source, source)), config, labelled)
    examples, left_out, first = [], 0, ""
    for where, record in records.items:
        try:
            if isinstance(record, BadExample):
                raise record
            examples.append(make(where, record))
        except BadExample as error:
            if not config.skip_bad_lines:
                raise UserError(
                    f"{where}: {error}. Mend it, or leave such lines out with --skip_bad_lines."
                ) from None
            first = first or f"the first: {where}: {error}."
            left_out += 1
    everything = count(len(examples) + left_out, "example")
    if not examples and left_out:
        raise UserError(f"none of the {everything} of {source} can be used; {first}")
    if not examples:
        raise UserError(f"{source} has no examples.")
    if left_out:
        are = "is" if left_out == 1 else "are"
        line = f"note: {left_out:,} of {everything} of {records.name} {are} left out; {first}"
        report(one_line(line))
    if config.task == "tag" and labelled:
        tags = to_iob2([example.tags for example in examples])
        pairs = zip(examples, tags, strict=True)
        examples = [dataclasses.replace(example, tags=new) for example, new in pairs]
    return examples


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
        origin, names = f"--label_names={text}", [n.strip() for n in text.split(",")]
        if names == [""]:
            names = []
    if not names:
        raise UserError(f"{origin} names no label. Write them comma-separated, or one a line.")
    for number, name in enumerate(names):
        if not name:
            raise UserError(f"{origin}: label {number} (from 0) is empty.")
        if name in names[:number]:
            raise UserError(f"{origin}: {name!r} is there twice, at {names.index(name)}, {number}.")
    return tuple(names)


def _reader(source, config, labelled):
    """Records of a source, and what makes an example of (where, record)."""
    task = config.task
    form = "tfds" if source.startswith("tfds:") else sources.plain_name(source).rpartition(".")[2]
    name = os.path.basename(source)
    if task == "tag" and form not in ("tfds", "json", "jsonl"):
        records = conll(source, name, config, labelled)
        return records, _TagMaker("words", "tags" if labelled else None)
    if task == "qa" and form == "json":
        return squad(source, name), _QuestionMaker(labelled)
    if form == "tfds":
        records = sources.tfds(source)
    elif form in ("json", "jsonl"):
        records = sources.json_lines(source, name)
    elif form in ("tsv", "txt", "csv") and task != "qa":
        records = sources.table(source, name, lambda row: has_header(row, config))
    else:
        tables = "" if task == "qa" else ".tsv, .txt, .csv, "
        raise UserError(
            f"{source} must be a file that ends in {tables}.json or .jsonl (or one of these and "
            f".gz), or tfds:NAME, for the task {task}."
        )
    if task == "qa":
        return _with_ids(records), _QuestionMaker(labelled)
    if task == "tag":
        return records, _TagMaker(*tag_keys(records, config, labelled))
    columns = find_columns(records, config, labelled)
    if task == "choice":
        return records, _ChoiceMaker(columns)
    return records, _TextMaker(task, columns)


def _with_ids(records):
    """Records whose questions have an id, be it their number, which `where` then names."""

    def items():
        for number, (where, record) in enumerate(records.items, 1):
            if isinstance(record, dict) and "id" in record:
                yield f"{where} (question {record['id']})", record
            else:
                yield where, ({"id": number} | record) if isinstance(record, dict) else record

    return dataclasses.replace(records, items=items())


class _TextMaker:
    def __init__(self, task, columns):
        self.task, self.columns = task, columns

    def __call__(self, where, record):
        columns = self.columns
        validation.check_width(record, columns)
        text = validation.text(validation.part(record, columns.text), "the text")
        pair = None
        if columns.text_pair is not None:
            pair = validation.text(validation.part(record, columns.text_pair), "the second text")
        if columns.label is None:
            return TextExample(where, text, pair)
        value = validation.part(record, columns.label)
        if self.task == "regress":
            return TextExample(where, text, pair, validation.target(value, where))
        label = (
            validation.label_tuple(value)
            if self.task == "multilabel"
            else validation.label_name(value)
        )
        return TextExample(where, text, pair, label)


class _ChoiceMaker:
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


class _TagMaker:
    def __init__(self, words_key, tags_key):
        self.words_key, self.tags_key = words_key, tags_key

    def __call__(self, where, record):
        words = self._texts(record, self.words_key, "word")
        if self.tags_key is None:
            return TagExample(where, words)
        tags = self._texts(record, self.tags_key, "tag")
        if len(tags) != len(words):
            raise BadExample(f"{count(len(words), 'word')}, but {count(len(tags), 'tag')}")
        return TagExample(where, words, tags)

    def _texts(self, record, key, what):
        values = validation.part(record, key)
        if not isinstance(values, list):
            raise BadExample(f"{key!r} must be a list of {what}s; got {shown(values)}")
        if not values:
            raise BadExample(f"there are no {what}s")
        for number, value in enumerate(values):
            if value == "" or not isinstance(value, str) or not sources.is_utf8(value):
                raise BadExample(f"{what} {number} (from 0) must be a text; got {shown(value)}")
        return tuple(values)


class _QuestionMaker:
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
