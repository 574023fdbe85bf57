"""Writes exports atomically, after comparing their outputs with the model's."""

import contextlib
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.errors import UserError
from kbert.fields import shared_settings
from kbert.model.folder import ModelFolder
from kbert.serving import comparison, messages, openvino_ir, saved_model, tf_hub
from kbert.serving.signatures import signatures
from kbert.serving.warmup import write_warmup
from kbert.settings import ColumnConfig, TextLimits
from kbert.tasks.arguments import check_length
from kbert.tasks.registry import load_task_module
from kbert.utils import atomic, storage
from kbert.utils.locks import target_lock

if TYPE_CHECKING:
    import os

    from kbert.settings import ExportConfig


def export_as(config: "ExportConfig") -> None:
    """Writes the export of an ExportConfig; see `export`, `export_tf_hub` and `export_openvino`."""
    load_task_module(config.task_module)
    folders, length = (config.model, config.output_dir), config.max_seq_length
    if config.format == "tf_hub":
        export_tf_hub(*folders, length)
        return
    request = {"method": config.method, "takes_pairs": config.takes_pairs, "max_seq_length": length}
    request |= {"eval_file": config.eval_file, "quantize": config.quantize}
    request["columns"] = ColumnConfig(**shared_settings(config, ColumnConfig))
    if config.format == "serving":
        limits = TextLimits(**shared_settings(config, TextLimits))
        export(*folders, batch_timeout_ms=config.batch_timeout_ms, limits=limits, **request)
    else:
        export_openvino(*folders, **request)


def export(
    model: "str | os.PathLike[str]",
    output_dir: "str | os.PathLike[str]",
    method: str | None = None,
    takes_pairs: bool | None = None,
    max_seq_length: int | None = None,
    batch_timeout_ms: float = 0,
    report: Callable[[str], None] = print,
    eval_file: str | None = None,
    columns: ColumnConfig | None = None,
    quantize: str | None = None,
    limits: TextLimits | None = None,
) -> None:
    """Writes a SavedModel with text inputs, and compares it with `kbert.Predictor`.

    The export is moved into place only after a separate process, with TensorFlow but without kbert,
    has loaded it and computed the same outputs for some texts.

    Args:
        model: folder, as for `BertModel.from_pretrained`.
        output_dir: folder to create.
        method, takes_pairs, max_seq_length: see `kbert.serving.saved_model.load_endpoint`, where
            `method` is `name`.
        batch_timeout_ms: see `kbert.serving.signatures.signatures`.
        report: called with lines of text.
        eval_file: labeled examples on which the SavedModel is compared with the model (see
            `kbert.serving.comparison`); the results are written to `assets.extra/compression.json`.
        columns: ColumnConfig of `eval_file`; None: infer the columns.
        quantize: "int8" (see `kbert.serving.saved_model.quantize_int8`) or None. An int8 SavedModel
            is compared with the quantized model, since its outputs differ from the Predictor's.
        limits: limits on the texts of a request; None: the defaults of TextLimits.

    Raises:
        UserError: the model cannot be read; the output folder is not empty, or another process is
            writing it; the model does not support an argument; the outputs differ from the expected
            ones; or the examples cannot be used.
    """
    _check_quantize("serving", quantize, "int8")
    target = _free(output_dir)
    endpoint = _endpoint(model, method, takes_pairs, max_seq_length, report)
    endpoint.limits = limits or endpoint.limits
    labeled = eval_file and comparison.ExportComparison(endpoint, eval_file, columns, report)
    original = {}
    if labeled and (quantize or batch_timeout_ms):  # the export is quantized, or waits for batches
        original = signatures(endpoint)
    if quantize:
        saved_model.quantize_int8(endpoint)
    with _new_folder(target) as path:
        functions = saved_model.save_endpoint(endpoint, path, batch_timeout_ms)
        samples = saved_model.samples(endpoint)
        expected = _expected(endpoint, functions, samples, quantize)
        for answers in saved_model.outputs_in_new_process(samples, path):
            checked = messages.checked_line(answers, *expected)
        notes = [checked]
        notes.append(_warm_up(path, functions, samples, target))
        if labeled:
            notes += labeled.with_saved_model(original or functions, path, quantize or "float32")
    notes += [*messages.output_spec_lines(endpoint, functions), messages.serve_line(target)]
    _report_all(report, messages.target_line(target), *notes)


def export_tf_hub(
    model: "str | os.PathLike[str]",
    output_dir: "str | os.PathLike[str]",
    max_seq_length: int | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Writes `preprocess` and `encoder` with TF Hub's text API; see `kbert.serving.tf_hub`.

    As in `export`, the folder is written atomically, after its outputs have been compared with the
    model's.

    Args:
        model: folder, as for `BertModel.from_pretrained`.
        output_dir: folder to create.
        max_seq_length: sequence length of the preprocessor in tokens; None: 128.
        report: called with lines of text.

    Raises:
        UserError: the model cannot be read or has no pooler, the output folder is not empty or
            another process is writing it, the model does not support the length, or the outputs
            differ from the model's.
    """
    target, folder = _free(output_dir), ModelFolder.of(model)
    tokenizer, length = folder.tokenizer, max_seq_length or 128
    encoder = saved_model.load_encoder(folder, output_hidden_states=True)
    check_length(length, encoder.config)
    report(messages.source_line(folder, "encoder", encoder, length))
    with _new_folder(target) as path:
        tf_hub.save_preprocessor(tokenizer, length, path / "preprocess")
        tf_hub.save_encoder(encoder, path / "encoder")
        samples = {"text": list(saved_model.SAMPLES)}
        outputs = encoder(tokenizer(samples["text"], max_length=length), training=False)
        (answers,) = saved_model.outputs_in_new_process(
            samples, path / "preprocess", path / "encoder"
        )
        expected = {"sequence_output": outputs["last_hidden_state"].numpy()}
        expected["pooled_output"] = outputs["pooler_output"].numpy()
        checked = messages.checked_line(answers, expected, "kbert.BertModel")
    how = f'use it: kbert.hub.BertLayer("{target / "encoder"}"), or in tf_keras hub.KerasLayer'
    _report_all(report, messages.target_line(target), checked, how)


def export_openvino(
    model: "str | os.PathLike[str]",
    output_dir: "str | os.PathLike[str]",
    method: str | None = None,
    takes_pairs: bool | None = None,
    max_seq_length: int | None = None,
    quantize: str | None = None,
    report: Callable[[str], None] = print,
    eval_file: str | None = None,
    columns: ColumnConfig | None = None,
) -> None:
    """Writes the model of a method for OpenVINO; see `kbert.serving.openvino_ir`.

    The folder is moved into place only after OpenVINO has computed outputs for some texts, and they
    have been compared with the model's.

    Args:
        model, output_dir, method, takes_pairs, max_seq_length, report: as for `export`.
        quantize: "float16" for weights of this dtype; None for float32.
        eval_file, columns: as for `export`; the results are written to `compression.json` in the
            folder.

    Raises:
        UserError: as for `export`; or OpenVINO is not installed, the model is too large, float32
            outputs differ from the model's, or the outputs of a quantized model are not finite.
    """
    _check_quantize("openvino", quantize, "float16")
    if not importlib.util.find_spec("openvino"):
        raise UserError("--format=openvino requires OpenVINO: pip install 'kbert[openvino]'")
    target = _free(output_dir)
    endpoint = _endpoint(model, method, takes_pairs, max_seq_length, report)
    labeled = eval_file and comparison.ExportComparison(endpoint, eval_file, columns, report)
    with _new_folder(target) as path:
        metadata = openvino_ir.save_openvino(endpoint, path, quantize)
        notes = [messages.computed_line(metadata), *messages.port_lines(metadata)]
        if labeled:
            notes += labeled.with_openvino(path, metadata["weights"])
    _report_all(report, messages.target_line(target), *notes)


def _endpoint(model, method, takes_pairs, max_seq_length, report):
    folder = ModelFolder.of(model)
    endpoint = saved_model.load_endpoint(folder, method, takes_pairs, max_seq_length)
    report(messages.source_line(folder, endpoint.name, endpoint.model, endpoint.max_seq_length))
    return endpoint


def _check_quantize(format, quantize, supported):
    if quantize not in (None, supported):
        raise UserError(
            f"--quantize={quantize} is not available with --format={format}; use "
            f"--quantize={supported}."
        )


def _expected(endpoint, functions, samples, quantize):
    """Returns the expected outputs of a SavedModel, and the name of their source."""
    if not quantize:
        return endpoint.reference_outputs(**samples), "kbert.predict"
    texts = {name: tf.constant(values) for name, values in samples.items()}
    return functions["serving_default"](**texts), "the int8 model"


def _report_all(report, *lines):
    for line in lines:
        report(line)


def _free(target):
    """Returns the absolute path of an output folder; raises UserError if it is not empty."""
    target = pathlib.Path(target).absolute()
    storage.check_output_folder_is_free(
        target,
        "Use the folder of the next version, or remove this one if no server reads it.",
    )
    return target


@contextlib.contextmanager
def _new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Opens a folder that is created atomically and locked against other processes."""
    with target_lock(target):
        _free(target)
        try:
            with atomic.folder(target) as path:
                yield path
        except tf.errors.OpError as error:  # raised when the disk is full, for example
            reason = re.sub(r"^\{\{.*?\}\} | \[Op:.*", "", error.message.splitlines()[0])
            raise UserError(
                f"cannot write {target}: {reason}. Fix that and run the same command again."
            ) from error


def _warm_up(path, functions, samples, target):
    try:
        count = write_warmup(path, functions, samples, target.parent.name)
    except ImportError:
        return "note: no warmup requests; they require TF Serving's API: pip install 'kbert[serve]'"
    return f"warmup requests: {count}"
