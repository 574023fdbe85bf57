"""Predictions for the texts of a file or of standard input, as JSON lines."""

import contextlib
import gzip
import itertools
import json
import sys

from tqdm import tqdm

from kbert.config import shared_settings
from kbert.data.examples import read_examples
from kbert.errors import UserError
from kbert.inference.predictor import Predictor
from kbert.settings import ColumnConfig, ExampleConfig
from kbert.tasks.outputs import MOST_MASKS

_CHUNK = 4096  # texts per chunk of reading, computing and writing
_METHOD_OF_TASK = {"tag": "tag", "qa": "answer", "choice": "choose"}
_TWO_TEXTS = ("answer", "next_sentence", "similarity")
# Minimum and maximum number of texts in a line; None for no maximum.
_COLUMNS = {
    **{"classify": (1, 2), "tag": (1, 1), "embed": (1, 1), "fill_mask": (1, 1)},
    **{"answer": (2, 2), "next_sentence": (2, 2), "similarity": (2, 2), "choose": (3, None)},
}


def predict(config, report=print):
    """Writes a model's predictions for texts as JSON lines, in the order of the texts.

    Args:
        config: PredictConfig. report: called with lines of text.

    Raises:
        UserError: a model or texts that cannot be used, with file and line.
    """
    dtype = None if config.precision == "float32" else config.precision
    predictor = Predictor.from_pretrained(
        config.model, dtype, batch_size=config.batch_size, backend=config.backend
    )
    task = (predictor.settings or {}).get("task")
    method = config.method or (_METHOD_OF_TASK.get(task, "classify") if task else "fill_mask")
    rows, total = _rows(config, method, predictor.settings or {}, report)
    with contextlib.ExitStack() as stack:
        output = sys.stdout
        if config.output_file != "-":
            output = stack.enter_context(open(config.output_file, "w", encoding="utf-8"))
        bar = stack.enter_context(tqdm(total=total, unit=" texts", file=sys.stderr, disable=None))
        predictor.advance = bar.update
        while chunk := list(itertools.islice(rows, _CHUNK)):
            results = iter(_results(predictor, method, [row for row in chunk if row], config))
            for row in chunk:
                line = next(results) if row else None  # skipped lines keep their place
                output.write(json.dumps(line, ensure_ascii=False) + "\n")
            output.flush()


def _results(predictor, method, rows, config):
    """Yields JSON objects for rows, which are tuples of the method's arguments."""
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    if method == "embed":
        return [{"embedding": v.tolist()} for v in predictor.embed(*columns, config.pooling)]
    if method == "tag":
        return [{"spans": spans} for spans in predictor.tag(*columns)]
    options = {"fill_mask": [config.top_k], "similarity": [config.pooling]}
    return getattr(predictor, method)(*columns, *options.get(method, []))


def _rows(config, method, settings, report):
    """Returns an iterator of tuples of texts, None for skipped lines; and their count, if known."""
    least, most = _COLUMNS[method]
    if method == "classify" and settings.get("takes_pairs", settings.get("task") == "pair"):
        least = 2
    columns = (least, most)
    if config.input_file == "-":
        return _line_rows(sys.stdin.buffer, "standard input", method, columns, config, report), None
    if config.input_file.removesuffix(".gz").endswith(".txt"):
        opened = gzip.open if config.input_file.endswith(".gz") else open
        with opened(config.input_file, "rb") as file:
            total = sum(1 for _ in file)
        file = opened(config.input_file, "rb")
        return _line_rows(file, config.input_file, method, columns, config, report), total
    return _example_rows(config, method, settings, report)


def _line_rows(lines, origin, method, columns, config, report):
    width, left_out = None, 0
    for number, line in enumerate(lines, 1):
        try:
            row = tuple(line.decode("utf-8").rstrip("\r\n").split("\t"))
            problem = _problem(row, method, columns, width)
        except UnicodeDecodeError:
            problem = "bytes that are not UTF-8"
        if problem and not config.skip_bad_lines:
            raise UserError(
                f"{origin}, line {number}: {problem}. Mend it, or put null for such lines with "
                f"--skip_bad_lines."
            )
        left_out += bool(problem)
        if problem:
            yield None
        else:
            width = len(row)
            yield (row[0], row[1:]) if method == "choose" else row
    if left_out:
        report(f"note: {left_out:,} lines of {origin} are left out: null stands for them")


def _problem(row, method, columns, width):
    """Returns the problem with the texts of a line, or None. width: of earlier lines, or None."""
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
        return f"{len(row)} texts came, separated by tabs; the lines before have {width}"
    if method == "fill_mask" and not 0 < row[0].count("[MASK]") <= MOST_MASKS:
        return f"there must be 1 to {MOST_MASKS} [MASK]; got {row[0].count('[MASK]')}"
    return None


def _example_rows(config, method, settings, report):
    task = {"answer": "qa", "choose": "choice"}.get(method, "classify")
    if method in _TWO_TEXTS[1:] or (method == "classify" and settings.get("task") == "pair"):
        task = "pair"
    elif method == "classify" and settings.get("task") in ("regress", "multilabel"):
        task = settings["task"]
    columns = ExampleConfig(**shared_settings(config, ColumnConfig), task=task)
    examples = read_examples(config.input_file, columns, False, report)
    fields = {"answer": ("question", "context"), "choose": ("text", "choices")}.get(
        method, ("text",)
    )
    if getattr(examples[0], "text_pair", None) is not None:
        fields = ("text", "text_pair")
    rows = [tuple(getattr(example, name) for name in fields) for example in examples]
    return iter(rows), len(rows)
