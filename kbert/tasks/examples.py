"""Reads the examples of a task from a file or from TFDS."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kbert.data.columns import count
from kbert.data.examples import SAMPLES
from kbert.data.records import BadExample
from kbert.errors import UserError, one_line
from kbert.tasks.registry import get_task

if TYPE_CHECKING:
    from typing import TypeAlias

    from kbert.data.examples import ChoiceExample, QuestionExample, TagExample, TextExample
    from kbert.settings.tasks import ExampleConfig

    Examples: TypeAlias = (
        list[TextExample] | list[TagExample] | list[QuestionExample] | list[ChoiceExample]
    )


def read_examples(
    source: str,
    config: "ExampleConfig",
    labelled: bool = True,
    report: Callable[[str], None] = print,
) -> "Examples":
    """Reads the examples of a file, plain or .gz, or of `tfds:NAME` or `tfds:NAME:SPLIT`.

    Args:
        source: path, a name that begins with tfds:, or one of `SAMPLES`, included in kbert: the
            author of a paragraph (task classify, label_column author).
        config: ExampleConfig, or an object with its fields task, text_column, text_pair_column,
            label_column, choice_columns, header and skip_bad_lines.
        labelled: whether to read labels; if False, they may be missing.
        report: called with a line that reports how many examples were skipped, if any, and with
            notes on how the file was read.

    Returns:
        List of TextExample (tasks classify, pair, regress, multilabel), TagExample (tag),
        QuestionExample (qa) or ChoiceExample (choice), in the order of the source.

    Raises:
        UserError: the source cannot be read or has no examples, or an example is invalid and
            `skip_bad_lines` is off.
    """
    task = get_task(config.task)
    records, make = task.reader(str(SAMPLES.get(source, source)), config, labelled)
    examples, left_out, first = [], 0, ""
    for where, record in records.items:
        try:
            if isinstance(record, BadExample):
                raise record
            examples.append(make(where, record))
        except BadExample as error:
            if not config.skip_bad_lines:
                raise UserError(
                    f"{where}: {error}. Fix it, or skip such lines with --skip_bad_lines."
                ) from None
            first = first or f"the first: {where}: {error}."
            left_out += 1
    everything = count(len(examples) + left_out, "example")
    if not examples and left_out:
        raise UserError(f"none of the {everything} of {source} is valid; {first}")
    if not examples:
        raise UserError(f"{source} has no examples.")
    if left_out:
        are = "is" if left_out == 1 else "are"
        line = f"note: {left_out:,} of {everything} of {records.name} {are} skipped; {first}"
        report(one_line(line))
    if labelled:
        examples = task.finished(examples, records.notes.append)
    for note in records.notes:
        report(one_line(f"note: {records.name}: {note}"))
    return examples
