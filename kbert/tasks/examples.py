"""Reads the examples of a task from files, folders of Hugging Face `datasets`, or TFDS."""

import os
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kbert.data.columns import count_text, to_flag
from kbert.data.examples import SAMPLES, read_label_names
from kbert.data.headers import UndecidedError
from kbert.data.records import BadExample, Records, source_files
from kbert.errors import UserError, one_line
from kbert.settings.tasks import ExampleConfig
from kbert.tasks.example_checks import content_warnings
from kbert.tasks.labels import ids_to_names, keep_known_labels
from kbert.tasks.registry import get_task

if TYPE_CHECKING:
    from typing import TypeAlias

    from kbert.data.examples import (
        ChoiceExample,
        EmbeddingExample,
        QuestionExample,
        TagExample,
        TextExample,
    )

    Examples: TypeAlias = (
        list[TextExample]
        | list[TagExample]
        | list[QuestionExample]
        | list[ChoiceExample]
        | list[EmbeddingExample]
    )
    Column: TypeAlias = str | int | None


def read_examples(
    path: str | os.PathLike[str],
    task: str,
    *,
    text_column: "Column" = None,
    text_pair_column: "Column" = None,
    label_column: "Column" = None,
    label_columns: str | Sequence[str | int] | None = None,
    choice_columns: str | Sequence[str | int] | None = None,
    first_choice: str = "auto",
    header: str = "auto",
    label_names: str | Sequence[str] | None = None,
    skip_bad_lines: bool = False,
) -> "Examples":
    """Reads labeled examples in the same way as kbert's programs.

    Prints notes on the file, for example if a header was inferred from the rows below it.

    Args:
        path: a plain or compressed file; FOLDER or FOLDER:SPLIT of Hugging Face `datasets`;
            `tfds:NAME` or `tfds:NAME:SPLIT`; or several files or globs, comma-separated.
        task: "classify", "pair", "regress", "multilabel", "tag", "qa", "choice", "embed",
            "rerank", or a registered task.
        text_column, text_pair_column, label_column: name of a column or key, or number of a
            column, from 0; None: inferred from names and values.
        label_columns: for multilabel, the columns of 0 and 1, each named after its label, as a
            sequence or comma-separated; None: inferred.
        choice_columns: for choice, the columns of the choices, as a sequence or comma-separated;
            None: inferred.
        first_choice: for choice, the label of the first choice if labels are numbers: "0", "1", or
            "auto", which infers it from all labels.
        header: whether tables have a header row: "auto", "yes" or "no".
        label_names: names of all labels in the order of their ids: a sequence, a comma-separated
            string, or the path of a file with one name per line. Labels that are ids are replaced
            by their names.
        skip_bad_lines: whether to skip and count invalid examples instead of raising.

    Returns:
        List of examples in the order of the file. Their attributes depend on the task:
        classify, pair, regress, multilabel: `text`, `text_pair` (None for single texts) and
        `label`, a str (classify, pair), float (regress) or tuple of str (multilabel).
        tag: `words` and `tags`, tuples of str.
        qa: `id`, `question`, `context`, `is_impossible`, and `answers`, each with `text` and
        `start`, the offset in characters of the context.
        choice: `text`, `choices`, a tuple of str, and `label`, the index of the correct choice.
        embed: `texts`, a tuple of str (the anchor, the positive and any negatives), and `label`, a
        score or None.
        rerank: as for regress, with `text_pair`; or, with negatives, as for choice: `choices` are
        the positive and the negatives.

    Raises:
        UserError: an argument is invalid, a file cannot be read or has no examples, its header or
            columns are ambiguous, an example is invalid, a label is not in `label_names`, or
            `label_names` is set for a task without label names.

    Example:
        >>> examples = kbert.read_examples("reviews.csv", "classify")
        >>> examples[0].text, examples[0].label
        ('A lovely film.', 'positive')
    """
    columns = (text_column, text_pair_column, label_column)
    text, pair, label = (None if column is None else str(column) for column in columns)
    config = ExampleConfig(
        task=task,
        text_column=text,
        text_pair_column=pair,
        label_column=label,
        label_columns=to_flag(label_columns),
        choice_columns=to_flag(choice_columns),
        first_choice=first_choice,
        header=header,
        skip_bad_lines=skip_bad_lines,
    )
    if label_names is None:
        examples = read_split(os.fspath(path), config)
        return get_task(task).checked_for_training(examples, skip_bad_lines, print)
    if not get_task(task).min_labels:
        raise UserError(f"label_names must be None for the task {task}; got {label_names!r}.")
    names = read_label_names(label_names)
    examples = keep_known_labels(read_split(os.fspath(path), config), names, skip_bad_lines, print)
    return ids_to_names(examples, names)


def read_split(
    source: str,
    config: "ExampleConfig",
    labeled: bool = True,
    report: Callable[[str], None] = print,
) -> "Examples":
    """Reads the examples of one source; see `SplitReader`."""
    return SplitReader(config, labeled, report).read(source)


class SplitReader:
    """Reads the examples of the splits of a run.

    A later file with the same columns as the first one is read in the same way, even if its content
    alone would not show which columns to read.

    Args:
        config: ExampleConfig, or an object with its fields.
        labeled: whether to read labels; if False, they may be missing.
        report: called with notes and warnings, for example about columns and skipped examples.
    """

    def __init__(
        self,
        config: "ExampleConfig",
        labeled: bool = True,
        report: Callable[[str], None] = print,
    ):
        self._config, self._labeled = config, labeled
        self._report = lambda line: report(one_line(line))
        self._task = get_task(config.task)
        self._first: Records | None = None

    def read(self, source: str) -> "Examples":
        """Returns the examples of a source.

        Args:
            source: the argument `path` of `read_examples`, or a name in `SAMPLES`:
                "sample:authors_train" and "sample:authors_eval" contain paragraphs and their
                authors (task classify, label_column author).

        Returns:
            List of TextExample (tasks classify, pair, regress, multilabel, rerank), TagExample
            (tag), QuestionExample (qa), ChoiceExample (choice, rerank) or EmbeddingExample (embed),
            in the order of the source.

        Raises:
            UserError: the source cannot be read or has no examples, or an example is invalid and
                `skip_bad_lines` is off.
        """
        examples = []
        for path in source_files(str(source)):
            examples += self._read_file(str(SAMPLES.get(path, path)), path)
        if self._labeled:
            for line in content_warnings(examples, os.path.basename(str(source))):
                self._report(line)
        return examples

    def _read_file(self, path, name):
        records, make = self._open(path)
        for note in records.notes:
            self._report(f"note: {records.name}: {note}")
        examples, skipped, first = [], 0, ""
        for where, record in records.items:
            try:
                if isinstance(record, BadExample):
                    raise record
                examples.append(make(where, record))
            except BadExample as error:
                if not self._config.skip_bad_lines:
                    raise UserError(
                        f"{where}: {error}. Fix it, or skip such lines with --skip_bad_lines."
                    ) from None
                first = first or f"the first: {where}: {error}."
                skipped += 1
        everything = count_text(len(examples) + skipped, "example")
        if not examples:
            problem = f"none of the {everything} of {name} is valid; {first}"
            raise UserError(problem if skipped else f"{name} has no examples.")
        if skipped:
            are = "is" if skipped == 1 else "are"
            self._report(
                f"note: {skipped:,} of {everything} of {records.name} {are} skipped; {first}"
            )
        if not self._labeled:
            return examples
        return self._task.standardize_examples(
            examples, lambda note: self._report(f"note: {records.name}: {note}")
        )

    def _open(self, path):
        """Returns records and the function that converts them to examples; see `Task.reader`."""
        try:
            records, make = self._task.reader(path, self._config, self._labeled)
        except UndecidedError:
            records, make = self._open_as_first(path)
            if records is None:
                raise
        else:
            self._first = self._first or records
            if records.flags != self._first.flags and _same_columns(records, self._first):
                records, make = self._open_as_first(path)
        return records, make

    def _open_as_first(self, path):
        if self._first is None:
            return None, None
        config = types.SimpleNamespace(**vars(self._config) | self._first.flags)
        records, make = self._task.reader(path, config, self._labeled)
        return (records, make) if _same_columns(records, self._first) else (None, None)


def _same_columns(records, first):
    if records.width is None and first.width is None:
        return set(records.names) == set(first.names)
    return (records.width, records.names) == (first.width, first.names)
