"""Comparison of an export with the original model: metrics, size and speed."""

import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import pad_examples
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES
from kbert.inference.backends import keras_backend
from kbert.serving import openvino_ir
from kbert.serving.messages import table_lines
from kbert.settings import ExampleConfig
from kbert.tasks import registry
from kbert.tasks.examples import read_split
from kbert.tasks.labels import keep_known_labels
from kbert.utils import atomic

if TYPE_CHECKING:
    from typing import TypeAlias

    from kbert.settings import ColumnConfig
    from kbert.tasks.endpoint import Endpoint

    Outputs: TypeAlias = Mapping[str, Any]  # outputs by name: arrays or tensors
    Inputs: TypeAlias = Mapping[str, Any]  # inputs by name: arrays or tensors
    ComparedModel: TypeAlias = tuple[int, Callable[[Inputs], Outputs]]

COMPARISON_FILE = "compression.json"
WARM_UP_CALLS = 10  # calls of each model before timing starts
# The models are called in turns, because the speed of a machine varies over time.
CALLS_PER_TURN = 20
MAX_TABLE_METRICS = 3  # maximum number of metrics in the table; the file has all metrics


def read_labeled(
    endpoint: "Endpoint",
    source: str,
    columns: "ColumnConfig | None",
    report: Callable[[str], None] = print,
) -> list[Any]:
    """Reads labeled examples for the task of an endpoint.

    Args:
        endpoint: Endpoint.
        source: as for `kbert.tasks.examples.read_split`.
        columns: ColumnConfig of the file; None: infer the columns.
        report: called with lines of text about the file.

    Returns:
        list of examples of the endpoint's task.

    Raises:
        UserError: the endpoint has no task or is for embeddings, an example is invalid, or the
            examples have one text and the endpoint takes two, or vice versa.
    """
    if endpoint.task is None or endpoint.task.compares_examples:
        kinds = registry.tasks().values()
        methods = dict.fromkeys(kind.method for kind in kinds if not kind.compares_examples)
        raise UserError(
            f"--eval_file requires a method with labeled examples: {', '.join(methods)}; got "
            f"{endpoint.name}."
        )
    name = registry.text_task_name(endpoint.task, "text_pair" in endpoint.texts)
    config = ExampleConfig(task=name, **(vars(columns) if columns else {}))
    examples = read_split(source, config, report=report)
    if endpoint.task.min_labels:
        names = endpoint.task.label_names
        examples = keep_known_labels(examples, names, config.skip_bad_lines, report)
    _check_pairs(endpoint, examples)
    return examples


def _check_pairs(endpoint, examples):
    takes = "text_pair" in endpoint.texts
    for example in examples if "text" in endpoint.texts else ():
        if hasattr(example, "choices") and "choices" not in endpoint.texts:
            raise UserError(
                f"{example.where}: the example has negatives, but an export scores one text at a "
                f"time. Use a file of pairs with labels."
            )
        if (getattr(example, "text_pair", None) is not None) != takes:
            raise UserError(
                f"{example.where}: the model takes {'two texts' if takes else 'one text'}, but the "
                f"example has {'one' if takes else 'two'}. Select the columns with --text_column "
                f"and --text_pair_column."
            )


class TokenIdInputs:
    """Labeled examples as inputs of the model: one per text, window, or text with its choices.

    Args:
        endpoint: Endpoint with a task.
        examples: labeled examples of this task.

    Attributes:
        inputs: list of dicts of the `ENCODER_FEATURES`, (1, L) or (1, C, L) int32 each.
    """

    def __init__(self, endpoint: "Endpoint", examples: Sequence[Any]) -> None:
        self._task, self._examples = endpoint.task, examples
        self._encoded = endpoint.task.encode(examples)
        self.inputs: list[dict[str, np.ndarray]] = []
        for item in self._encoded.items:
            padded = pad_examples([item], item.length, 1, endpoint.tokenizer.pad_id)
            self.inputs.append({name: padded[name] for name in ENCODER_FEATURES})

    def scores(self, outputs: "Iterable[Outputs]") -> dict[str, Any]:
        """Returns the task's metrics, given the outputs of `Endpoint.forward` for each input."""
        # For tags, a SavedModel returns probabilities, which have the same order as the logits.
        names = {"probabilities": "logits"}
        rows = [{names.get(n, n): np.asarray(x)[0] for n, x in row.items()} for row in outputs]
        predictions = self._task.predictions(self._examples, self._encoded, rows)
        return self._task.scores(self._examples, predictions)


class TextInputs:
    """Labeled examples as text inputs of a SavedModel, one per example.

    Args and attributes are as for `TokenIdInputs`, but `inputs` are dicts of string tensors.
    """

    def __init__(self, endpoint: "Endpoint", examples: Sequence[Any]) -> None:
        self._task, self._examples = endpoint.task, examples
        self.inputs: list[dict[str, tf.Tensor]] = [
            {name: tf.constant([getattr(example, name)]) for name in endpoint.texts}
            for example in examples
        ]

    def scores(self, outputs: "Iterable[Outputs]") -> dict[str, Any]:
        """Returns the task's metrics, given the outputs of `serving_default` for each input."""
        rows = [{n: np.asarray(x).tolist()[0] for n, x in row.items()} for row in outputs]
        return self._task.scores(
            self._examples, [self._task.from_endpoint_output(row) for row in rows]
        )


def compare_models(
    evaluation_set: TokenIdInputs | TextInputs, models: "Mapping[str, ComparedModel]"
) -> list[dict[str, Any]]:
    """Compares the metrics, size and speed of models.

    Args:
        evaluation_set: `TokenIdInputs` or `TextInputs`.
        models: dict of name -> (size in bytes, function from one of the inputs to outputs).

    Returns:
        list of dicts, one per model: `model`, its name; `megabytes`; `milliseconds`, the median
        time per input after a warmup; and `scores`, the metrics.
    """
    outputs, seconds = ({name: [] for name in models} for _ in range(2))
    for _, compute in models.values():
        for inputs in evaluation_set.inputs[:WARM_UP_CALLS]:
            compute(inputs)
    for start in range(0, len(evaluation_set.inputs), CALLS_PER_TURN):
        for name, (_, compute) in models.items():
            for inputs in evaluation_set.inputs[start : start + CALLS_PER_TURN]:
                begin = time.perf_counter()
                outputs[name].append(compute(inputs))
                seconds[name].append(time.perf_counter() - begin)
    return [
        {
            "model": name,
            "megabytes": round(size / 1e6, 3),
            "milliseconds": round(1000 * statistics.median(seconds[name]), 3),
            "scores": evaluation_set.scores(outputs[name]),
        }
        for name, (size, _) in models.items()
    ]


class ExportComparison:
    """Compares exports with the original model on labeled examples.

    OpenVINO uses as many threads as TensorFlow; the program `kbert.export` sets both to one.

    Args:
        endpoint: Endpoint of the float32 model.
        source, columns, report: as for `read_labeled`.
    """

    def __init__(
        self,
        endpoint: "Endpoint",
        source: str,
        columns: "ColumnConfig | None",
        report: Callable[[str], None] = print,
    ) -> None:
        self._endpoint, self._source = endpoint, source
        self._examples = read_labeled(endpoint, source, columns, report)
        self._threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()

    def with_saved_model(
        self,
        functions: Mapping[str, Callable[..., dict[str, tf.Tensor]]],
        folder: pathlib.Path,
        weights: str,
    ) -> list[str]:
        """Compares a SavedModel, and writes `compression.json` to its `assets.extra`.

        Args:
            functions: signatures of the original model, dict of name -> concrete function.
            folder: folder of the SavedModel.
            weights: type of the SavedModel's weights, "float32" or "int8".

        Returns:
            The lines of a table with the results.
        """
        kind, name = TextInputs, "serving_default"
        if self._endpoint.scored_by_ids:
            kind, name = TokenIdInputs, "from_ids"
        evaluation_set = kind(self._endpoint, self._examples)
        loaded = tf.saved_model.load(str(folder)).signatures
        models = {
            "kbert float32": (_weight_bytes(self._endpoint), _returning_arrays(functions[name])),
            f"SavedModel {weights}": (_bytes(folder, "*"), _returning_arrays(loaded[name])),
        }
        return self._written(compare_models(evaluation_set, models), folder / "assets.extra")

    def with_openvino(self, folder: pathlib.Path, weights: str) -> list[str]:
        """Compares an OpenVINO model, and writes `compression.json` to its folder.

        A quantized model is also compared with a float32 OpenVINO model.

        Args:
            folder: folder of the model.
            weights: type of the model's weights, "float32" or "float16".

        Returns:
            The lines of a table with the results.
        """
        endpoint, evaluation_set = self._endpoint, TokenIdInputs(self._endpoint, self._examples)
        compute = keras_backend(endpoint.forward, evaluation_set.inputs[0])
        models = {"kbert float32": (_weight_bytes(endpoint), compute)}
        with tempfile.TemporaryDirectory() as scratch:
            folders = {"float32": pathlib.Path(scratch), weights: folder}
            if weights != "float32":
                openvino_ir.write_model(endpoint, folders["float32"])
            for name, path in folders.items():
                compute = openvino_ir.load_model(path, self._threads)
                models[f"openvino {name}"] = _bytes(path, "model.[bx]*"), compute
            return self._written(compare_models(evaluation_set, models), folder)

    def _written(self, rows, folder):
        """Writes the rows of `compare_models` as JSON; returns the lines of their table."""
        count, source = len(self._examples), str(self._source)
        summary = {"eval_file": source, "examples": count, "threads": self._threads, "rows": rows}
        atomic.write_json(folder / COMPARISON_FILE, summary)
        metric, scores = self._endpoint.task.metric, rows[0]["scores"]
        others = [n for n, value in scores.items() if isinstance(value, float) and n != metric]
        names = [metric, *others][:MAX_TABLE_METRICS]
        table = [["", *names, "MB", "ms"]]
        for row in rows:
            cells = [f"{row['scores'][name]:.4f}" for name in names]
            cells += [f"{row['megabytes']:,.1f}", f"{row['milliseconds']:,.2f}"]
            table.append([row["model"], *cells])
        return [
            f"{count:,} examples of {source}, one at a time on {self._threads} "
            f"thread{'s' * (self._threads > 1)}; ms: median",
            *table_lines(table),
        ]


def _returning_arrays(function):
    def compute(inputs):
        tensors = {name: tf.convert_to_tensor(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in function(**tensors).items()}

    return compute


def _weight_bytes(endpoint):
    weights = [weight for weight in endpoint.model.weights if not weight.name.endswith("_scale")]
    return sum(4 * np.prod(weight.shape, dtype=np.int64) for weight in weights)


def _bytes(folder, pattern):
    paths = (path for path in pathlib.Path(folder).rglob(pattern) if path.is_file())
    return sum(path.stat().st_size for path in paths)
