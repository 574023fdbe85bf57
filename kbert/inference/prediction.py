"""Predictions for the texts of a file or of standard input, as JSON lines."""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable

from tqdm import tqdm

from kbert.data.columns import count_text
from kbert.errors import UserError
from kbert.fields import shared_settings
from kbert.inference.predictor import Predictor
from kbert.settings import METHODS, ColumnConfig, ExampleConfig, PredictConfig
from kbert.tasks import registry
from kbert.tasks.examples import read_split
from kbert.tasks.names import check_method
from kbert.tasks.outputs import MAX_MASKS
from kbert.utils import atomic
from kbert.utils.input_files import encoding_note, plain_name, read_byte_lines

_CHUNK = 4096  # texts to read, compute and write at a time
_TWO_TEXTS = ("next_sentence", "similarity")
_OPTIONS = {  # method -> its options, which are fields of PredictConfig
    "fill_mask": ("top_k", "targets"),
    "answer": ("top_k", "max_answer_length", "allow_no_answer"),
    "similarity": ("pooling",),
    "embed": ("pooling", "prompt_name"),
}


def predict(config: PredictConfig, report: Callable[[str], object] = print) -> None:
    """Writes a model's predictions for the texts of a file as JSON lines, in the same order.

    Args:
        config: settings of the program.
        report: called with each line of output except the predictions.

    Raises:
        UserError: the method is unknown, the model or a text cannot be used, or an option does not
            apply to the method.
    """
    registry.load_task_module(config.task_module)
    own_methods = (kind.method for kind in registry.tasks().values())
    check_method(config.method, dict.fromkeys([*METHODS, *own_methods]))
    dtype = None if config.precision == "float32" else config.precision
    predictor = Predictor.from_pretrained(
        config.model, dtype, batch_size=config.batch_size, backend=config.backend
    )
    settings = predictor.settings or {}
    own = registry.get_task(settings["task"]) if settings else None
    method = config.method or predictor.method
    _check_options(config, method)
    task = own if own and own.method == method else registry.task_of_method(method)
    rows, total = _rows(config, method, task, settings, report)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(_output_file(config.output_file))
        bar = stack.enter_context(tqdm(total=total, unit=" texts", file=sys.stderr, disable=None))
        predictor.advance = bar.update
        while chunk := list(itertools.islice(rows, _CHUNK)):
            texts = [row for row in chunk if row]
            results = iter(_results(predictor, method, task, texts, config))
            for row in chunk:
                line = next(results) if row else None  # the prediction for a skipped line is null
                if row and config.echo:
                    line = {"input": row[0] if len(row) == 1 else row, **line}
                output.write(json.dumps(line, ensure_ascii=False) + "\n")
            output.flush()


@contextlib.contextmanager
def _output_file(path):
    """Opens a file that is moved to `path` when it is complete; "-" means standard output."""
    if path == "-":
        yield sys.stdout
        return
    target = atomic.file(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isfile(path):  # such as a named pipe
        target = contextlib.nullcontext(path)
    with target as place, open(place, "w", encoding="utf-8") as output:
        yield output


def _results(predictor, method, task, rows, config):
    """Returns a JSON object for each row, the tuple of the method's arguments for one text."""
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    options = {name: getattr(config, name) for name in _OPTIONS.get(method, ())}
    options = {name: value for name, value in options.items() if value is not None}
    if method == "embed":
        return [{"embedding": v.tolist()} for v in predictor.embed(*columns, **options)]
    if task:
        own = (predictor.settings or {}).get("task") == task.name
        # Without a task of its own, a classifier may be one of several tasks.
        name = predictor.classifier() if method == "classify" and not own else task.name
        results = predictor.predict(name, *columns, **options)
        return [task.to_json(result) for result in results]
    if "targets" in options:
        options["targets"] = [target.strip() for target in config.targets.split(",")]
    return getattr(predictor, method)(*columns, **options)


def _check_options(config, method):
    """Raises UserError if a flag is set that does not apply to the method."""
    for name in sorted({name for names in _OPTIONS.values() for name in names}):
        methods = [other for other, names in _OPTIONS.items() if name in names]
        if getattr(config, name) is not None and method not in methods:
            raise UserError(f"--{name} is for {' and '.join(methods)}; the method is {method}.")


def _rows(config, method, task, settings, report):
    """Returns an iterator over rows (None for skipped lines), and their number, None if unknown."""
    least, most = task.texts if task else (2, 2) if method in _TWO_TEXTS else (1, 1)
    if most == 2 and settings.get("takes_pairs", task and task.takes_pairs):
        least = 2
    columns = (least, most)
    if config.input_file == "-":
        return _line_rows(sys.stdin.buffer, "standard input", method, columns, config, report), None
    if plain_name(config.input_file).endswith(".txt"):
        total = sum(1 for _ in read_byte_lines(config.input_file))
        lines = read_byte_lines(config.input_file)
        return _line_rows(lines, config.input_file, method, columns, config, report), total
    return _example_rows(config, method, task, report)


def _line_rows(lines, origin, method, columns, config, report):
    width, skipped = None, 0
    for number, line in enumerate(lines, 1):
        try:
            row = tuple(line.decode("utf-8").rstrip("\r\n").split("\t"))
            problem = _row_problem(row, method, columns, width)
        except UnicodeDecodeError:
            note = encoding_note(origin) if os.path.isfile(origin) else ""
            problem = f"bytes that are not UTF-8{note}"
        if problem and not config.skip_bad_lines:
            raise UserError(
                f"{origin}, line {number}: {problem}. Fix it, or write null for such lines with "
                f"--skip_bad_lines."
            )
        skipped += bool(problem)
        if problem:
            yield None
        else:
            width = len(row)
            yield (row[0], row[1:]) if columns[1] is None else row
    if skipped:
        report(f"note: predictions are null for {count_text(skipped, 'skipped line')} of {origin}")


def _row_problem(row, method, columns, width):
    """Returns the problem with a line, or None.

    Args:
        columns: minimum and maximum number of texts; a maximum of None means that there is none.
        width: number of texts in the previous lines; None for the first line.
    """
    least, most = columns
    if not all(part.strip() for part in row):
        return "the text is empty"
    if len(row) < least or (most and len(row) > most):
        if most == 1:
            return f"{method} needs one text, without tabs; got {len(row)}"
        expected = (
            f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
        )
        return f"{method} needs {expected} texts, separated by tabs; got {len(row)}"
    if width and len(row) != width:
        return f"got {len(row)} texts, separated by tabs, but the lines before have {width}"
    if method == "fill_mask" and not 0 < row[0].count("[MASK]") <= MAX_MASKS:
        return f"the text must have 1 to {MAX_MASKS} [MASK]; got {row[0].count('[MASK]')}"
    return None


def _example_rows(config, method, task, report):
    name = "pair" if method in _TWO_TEXTS else "classify"
    if task:
        name = task.unlabeled_task or task.name
    columns = ExampleConfig(**shared_settings(config, ColumnConfig), task=name)
    examples = read_split(config.input_file, columns, False, report)
    fields = task.example_fields if task else ("text",)
    if getattr(examples[0], "text_pair", None) is not None and method != "embed":
        fields = ("text", "text_pair")
    rows = [tuple(getattr(example, name) for name in fields) for example in examples]
    return iter(rows), len(rows)
