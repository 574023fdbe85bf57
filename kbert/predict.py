"""Predicts: echo "Paris is the [MASK] of France." | python -m kbert.predict --model=FOLDER"""

import contextlib
import dataclasses
import itertools
import json
import sys
import types

from kbert import flags, program
from kbert.errors import UserError
from kbert.settings import ColumnConfig, PredictConfig


_CHUNK = 4096  # texts read, computed and written at a time
_METHOD_OF_TASK = {"tag": "tag", "qa": "answer", "choice": "choose"}
_TASK_OF_METHOD = {"tag": "classify", "answer": "qa", "choose": "choice"}
_TWO_TEXTS = ("answer", "next_sentence", "similarity")


def predict(config, report=print):
    """Writes what a model says of texts, a JSON object a line, in their order.

    Args:
        config: PredictConfig. report: called with lines of text.

    Raises:
        UserError: a model or texts that cannot be used, with file and line.
    """
    from tqdm import tqdm

    from kbert.tasks.predictor import Predictor

    dtype = None if config.precision == "float32" else config.precision
    predictor = Predictor.from_pretrained(config.model, dtype, config.batch_size)
    task = (predictor.settings or {}).get("task")
    method = config.method or (_METHOD_OF_TASK.get(task, "classify") if task else "fill_mask")
    rows, total = _rows(config, method, report)
    with contextlib.ExitStack() as stack:
        output = sys.stdout
        if config.output_file != "-":
            output = stack.enter_context(open(config.output_file, "w", encoding="utf-8"))
        bar = stack.enter_context(tqdm(total=total, unit=" texts", file=sys.stderr, disable=None))
        predictor.advance = bar.update
        while chunk := list(itertools.islice(rows, _CHUNK)):
            found = iter(_found(predictor, method, [row for row in chunk if row], config))
            for row in chunk:
                line = next(found) if row else None  # what was left out keeps its place
                output.write(json.dumps(line, ensure_ascii=False) + "\n")
            output.flush()


def _found(predictor, method, rows, config):
    """JSON objects for rows, which are tuples of what the method takes."""
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    if method == "embed":
        return [{"embedding": v.tolist()} for v in predictor.embed(*columns, config.pooling)]
    if method == "tag":
        return [{"spans": spans} for spans in predictor.tag(*columns)]
    options = {"fill_mask": [config.k], "similarity": [config.pooling]}
    return getattr(predictor, method)(*columns, *options.get(method, []))


def _rows(config, method, report):
    """Iterator of tuples of texts, None for bad lines that are left out; how many, if known."""
    if config.input_file == "-":
        return _line_rows(sys.stdin.buffer, "standard input", method, config), None
    if config.input_file.removesuffix(".gz").endswith(".txt"):
        from kbert.data.records import read_lines

        lines = [line for _, line in read_lines(config.input_file)]
        return _line_rows(lines, config.input_file, method, config), len(lines)
    return _example_rows(config, method, report)


def _line_rows(lines, origin, method, config):
    for number, line in enumerate(lines, 1):
        try:
            line = line.decode("utf-8") if isinstance(line, bytes) else line
            row = tuple(part.strip() for part in line.rstrip("\r\n").split("\t"))
            problem = None
        except UnicodeDecodeError:
            problem = "bytes that are not UTF-8"
        if not problem and not all(row):
            problem = "the text is empty"
        if not problem and method in _TWO_TEXTS and len(row) != 2:
            problem = f"{method} needs two texts, separated by a tab; got {len(row)}"
        if not problem and method == "choose" and len(row) < 3:
            problem = "choose needs a text and at least two choices, separated by tabs"
        if not problem and len(row) > 1 and method in ("tag", "embed", "fill_mask"):
            problem = f"{method} takes one text a line; got {len(row)}, separated by tabs"
        if problem and not config.skip_bad_lines:
            raise UserError(
                f"{origin}, line {number}: {problem}. Mend it, or put null for such lines with "
                f"--skip_bad_lines."
            )
        if problem:
            yield None
        else:
            yield (row[0], row[1:]) if method == "choose" else row


def _example_rows(config, method, report):
    from kbert.data.examples import read_examples

    task = _TASK_OF_METHOD.get(method, "pair" if method in _TWO_TEXTS else "classify")
    if method == "classify" and config.text_pair_column:
        task = "pair"
    columns = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(ColumnConfig)
    }
    columns = types.SimpleNamespace(**columns, task=task, labels=None)
    examples = read_examples(config.input_file, columns, False, report)
    fields = {"answer": ("question", "context"), "choose": ("text", "choices")}.get(
        method, ("text",)
    )
    if task == "pair":
        fields = ("text", "text_pair")
    rows = [tuple(getattr(example, name) for name in fields) for example in examples]
    return iter(rows), len(rows)


def main():
    """Runs `predict` with the flags."""
    predict(flags.read(PredictConfig), report=lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    flags.define(PredictConfig)
    program.run(main)
