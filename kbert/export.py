"""Exports for serving: python -m kbert.export --model=FOLDER --output_dir=models/bert/1"""

import dataclasses
import pathlib
import re

from absl import flags as absl_flags

from kbert.errors import UserError
from kbert.settings import (
    EXPORT_METHODS,
    EXPORT_RUNTIMES,
    QUANTIZATIONS,
    ColumnConfig,
    TaskModuleConfig,
)
from kbert.utils import flags as settings_flags
from kbert.utils import program
from kbert.utils.locks import target_lock


def export(
    source,
    target,
    method=None,
    takes_pairs=None,
    max_seq_length=None,
    batch_timeout_ms=0,
    report=print,
    eval_file=None,
    columns=None,
    quantize=None,
):
    """Writes a SavedModel that answers text, and compares it with `kbert.Predictor`.

    It is made whole or not at all: before it gets its name, a process of its own that has
    TensorFlow and not kbert loads it from another folder and answers some texts.

    Args:
        source: as for `BertModel.from_pretrained`. target: folder to make.
        method, takes_pairs, max_seq_length: see `kbert.serving.saved_model.load_endpoint`.
        batch_timeout_ms: see `kbert.serving.signatures.signatures`.
        report: called with lines of text.
        eval_file: labelled examples on which the SavedModel is compared with the model, see
            `kbert.serving.comparison`; the figures go to `assets.extra/compression.json`.
        columns: ColumnConfig of that file; None: as they come.
        quantize: "int8", see `kbert.serving.saved_model.quantize_int8`, or None. What is written
            answers as the model does with these weights, no longer as the Predictor.

    Raises:
        UserError: a folder that cannot be read, exists or is being made; an argument that does not
            fit the model; answers that differ from the Predictor's; examples that cannot be used.
    """
    from kbert.serving import comparison, messages, saved_model
    from kbert.serving.signatures import signatures

    if quantize not in (None, "int8"):
        raise UserError(f"--format=serving has no --quantize={quantize}; it has int8.")
    target = _free(target)
    endpoint = saved_model.load_endpoint(source, method, takes_pairs, max_seq_length)
    report(messages.source_line(source, endpoint.name, endpoint.model, endpoint.max_seq_length))
    labelled = comparison.Labelled(endpoint, eval_file, columns, report)
    functions, before, notes = {}, {}, []
    if eval_file and (quantize or batch_timeout_ms):  # what is written has other weights, or waits
        before = signatures(endpoint)
    if quantize:
        saved_model.quantize_int8(endpoint)

    def write(path):
        functions.update(saved_model.save_endpoint(endpoint, path, batch_timeout_ms))
        samples = saved_model.samples(endpoint)
        answers = saved_model.answers_alone(samples, path)
        notes.append(
            messages.checked_line(answers, *_expected(endpoint, functions, samples, quantize))
        )
        notes.append(_warm_up(path, functions, samples, target))
        notes.extend(labelled.with_saved_model(before or functions, path, quantize or "float32"))

    _make(target, write)
    notes += [*messages.output_spec_lines(endpoint, functions), messages.serve_line(target)]
    _report_all(report, messages.target_line(target), *notes)


def export_tf_hub(source, target, max_seq_length=None, report=print):
    """Writes `preprocess` and `encoder` with TF Hub's text API; see `kbert.serving.tf_hub`.

    Whole or not at all, and compared with the model as `export` does.

    Args:
        source: as for `BertModel.from_pretrained`. target: folder to make.
        max_seq_length: tokens of a sequence of the preprocessor; None: 128.
        report: called with lines of text.

    Raises:
        UserError: a folder that cannot be read, exists or is being made; a length that the model
            does not have.
    """
    from kbert.inference.predictor import check_length
    from kbert.serving import messages, saved_model, tf_hub
    from kbert.tokenizer import BertTokenizer
    from kbert.utils.formats import find_folder

    target, length = _free(target), max_seq_length or 128
    tokenizer = BertTokenizer.from_pretrained(find_folder(source))
    model = saved_model.load_encoder(find_folder(source), output_hidden_states=True)
    check_length(length, model.config)
    report(messages.source_line(source, "encoder", model, length))
    notes = []

    def write(path):
        tf_hub.save_preprocessor(tokenizer, length, path / "preprocess")
        tf_hub.save_encoder(model, path / "encoder")
        samples = {"text": list(saved_model.SAMPLES)}
        outputs = model(tokenizer(samples["text"], max_length=length), training=False)
        answers = saved_model.answers_alone(samples, path / "preprocess", path / "encoder")
        expected = {"sequence_output": outputs["last_hidden_state"].numpy()}
        expected["pooled_output"] = outputs["pooler_output"].numpy()
        notes.append(messages.checked_line(answers, expected, "kbert.BertModel"))

    _make(target, write)
    how = f'use it: kbert.hub.BertLayer("{target / "encoder"}"); in tf_keras hub.KerasLayer'
    _report_all(report, messages.target_line(target), *notes, how)


def export_to_runtime(
    source,
    target,
    format,
    method=None,
    takes_pairs=None,
    max_seq_length=None,
    quantize=None,
    report=print,
    eval_file=None,
    calibration_file=None,
    columns=None,
):
    """Writes the model of a method for another runtime; see `kbert.serving.conversions`.

    Whole or not at all: the runtime computes some texts before the folder gets its name.

    Args:
        source, target, method, takes_pairs, max_seq_length, report: as for `export`.
        format: one of `kbert.settings.EXPORT_RUNTIMES`. quantize: "int8", "float16"; None: float32.
        eval_file, columns: as for `export`; the figures go to `compression.json`.
        calibration_file: examples from which int8 takes the ranges of activations.

    Raises:
        UserError: as of `export`; what the format does not have; a package that is missing;
            float32 numbers that differ from the model's, or others that are not finite.
    """
    from kbert.serving import comparison, conversions, messages, runtimes, saved_model

    runtime = runtimes.find_runtime(format, quantize, calibration_file is not None)
    target = _free(target)
    endpoint = saved_model.load_endpoint(source, method, takes_pairs, max_seq_length)
    report(messages.source_line(source, endpoint.name, endpoint.model, endpoint.max_seq_length))
    labelled = comparison.Labelled(endpoint, eval_file, columns, report)
    calibration = comparison.calibration_features(endpoint, calibration_file, columns, report)
    notes = []

    def write(path):
        metadata = conversions.save_conversion(endpoint, runtime, path, quantize, calibration)
        notes.extend([messages.computed_line(metadata), *messages.port_lines(metadata)])
        notes.extend(labelled.with_runtime(runtime, path, metadata))

    _make(target, write)
    _report_all(report, messages.target_line(target), *notes)


def _expected(endpoint, functions, samples, quantize):
    """What a SavedModel should answer, and whose answers these are."""
    import tensorflow as tf

    if not quantize:
        return endpoint.reference_outputs(**samples), "kbert.predict"
    texts = {name: tf.constant(values) for name, values in samples.items()}
    return functions["serving_default"](**texts), "the int8 model"


def _report_all(report, *lines):
    for line in lines:
        report(line)


def _free(target):
    target = pathlib.Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"{target} exists and is not empty. Name the next version, or remove it: TensorFlow "
            f"Serving may be reading it."
        )
    return target


def _make(target, write):
    """Makes a folder whole or not at all, and while no other process makes it.

    Args:
        target: path. write: function that fills the folder it is given.

    Raises:
        UserError: the folder exists or is being made; it cannot be written.
    """
    import tensorflow as tf

    from kbert.train.checkpoint import replace_folder

    with target_lock(target, "--output_dir"):
        try:
            replace_folder(_free(target), write)
        except tf.errors.OpError as error:  # TensorFlow's word for a full disk, and others
            reason = re.sub(r"^\{\{.*?\}\} | \[Op:.*", "", error.message.splitlines()[0])
            raise UserError(
                f"cannot write {target}: {reason}. Mend that and run the same command again."
            ) from error


def _warm_up(path, functions, samples, target):
    from kbert.serving.warmup import write_warmup

    try:
        count = write_warmup(path, functions, samples, target.parent.name)
    except ImportError:
        return "note: no warm-up requests, which need TF Serving's API: pip install 'kbert[serve]'"
    return f"warm-up requests: {count}"


def define_flags():
    """Defines the flags; not on import, since programs share names."""
    absl_flags.DEFINE_string(
        "model",
        None,
        "folder of weights in any format, or the name of a model on the Hugging Face hub",
    )
    absl_flags.DEFINE_string(
        "output_dir",
        None,
        "folder to make; TensorFlow Serving wants models/NAME/VERSION, such as models/bert/1",
    )
    absl_flags.DEFINE_enum(
        "method",
        None,
        list(EXPORT_METHODS),
        "what it answers; default: what the model was fine-tuned for, else fill_mask",
    )
    absl_flags.DEFINE_enum(
        "format",
        "serving",
        ["serving", "tf_hub", *EXPORT_RUNTIMES],
        "serving: a SavedModel that answers; tf_hub: preprocess/ and encoder/ with TF Hub's text "
        "API; openvino, litert, onnx: the model without its tokenizer, for these runtimes",
    )
    absl_flags.DEFINE_enum(
        "quantize",
        None,
        list(QUANTIZATIONS),
        "weights of serving, onnx (int8), openvino (float16) or litert (both); default: float32",
    )
    absl_flags.DEFINE_bool(
        "takes_pairs",
        None,
        "whether a text comes with a second one, text_pair; default: as in fine-tuning",
    )
    absl_flags.DEFINE_integer(
        "max_seq_length",
        None,
        "tokens of a sequence; default: as in fine-tuning, or as the model can",
    )
    absl_flags.DEFINE_float(
        "batch_timeout_ms",
        0.0,
        "serving: how long a request waits for others to share a batch in the graph, where the "
        "server makes none; 0: not at all",
        lower_bound=0.0,
    )
    absl_flags.DEFINE_string(
        "eval_file",
        None,
        "labelled examples, in the formats of kbert.finetune, to score the export on and the model "
        "it came from; compression.json has the figures",
    )
    absl_flags.DEFINE_string(
        "calibration_file",
        None,
        "examples that --quantize=int8 of onnx takes the ranges of activations from, such as the "
        "training data; default: they are found anew for every input",
    )
    settings_flags.define(ColumnConfig)
    settings_flags.define(TaskModuleConfig)


def _check_used(flags):
    """Refuses flags that nothing would look at.

    Raises:
        UserError: one is given.
    """
    if flags.batch_timeout_ms and flags.format != "serving":
        raise UserError(f"--batch_timeout_ms is for --format=serving; got {flags.format}.")
    if not flags.eval_file and not flags.calibration_file:
        for field in dataclasses.fields(ColumnConfig):
            if flags[field.name].value != field.default:
                raise UserError(f"--{field.name} is for --eval_file or --calibration_file.")


def main():
    """Runs the export that the flags ask for."""
    values = {name: absl_flags.FLAGS[name].value for name in ("model", "output_dir")}
    for name in values:
        if not values[name]:
            raise UserError(
                f"--{name} is missing: python -m kbert.export --model=A --output_dir=B/1"
            )
    flags = absl_flags.FLAGS
    tf = program.import_tensorflow()
    tf.config.set_visible_devices([], "GPU")  # it needs none, nor TF32
    if flags.eval_file:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # as the runtimes it is timed with
        tf.config.threading.set_inter_op_parallelism_threads(1)
    from kbert.tasks.registry import load_task_module

    load_task_module(flags.task_module)
    _check_used(flags)
    request = flags.method, flags.takes_pairs, flags.max_seq_length
    files = {"eval_file": flags.eval_file, "columns": settings_flags.read(ColumnConfig)}
    if flags.format in EXPORT_RUNTIMES:
        files["calibration_file"] = flags.calibration_file
        export_to_runtime(*values.values(), flags.format, *request, flags.quantize, **files)
    elif flags.calibration_file:
        raise UserError(f"--calibration_file is for --format=onnx; got {flags.format}.")
    elif flags.format == "serving":
        files["quantize"] = flags.quantize
        export(*values.values(), *request, flags.batch_timeout_ms, **files)
    elif flags.quantize:
        raise UserError("--quantize is not for --format=tf_hub, whose encoder is trained further.")
    elif flags.method or flags.takes_pairs is not None or flags.eval_file:
        raise UserError(
            "--method, --takes_pairs and --eval_file are not for --format=tf_hub; an encoder has "
            "no head."
        )
    else:
        export_tf_hub(*values.values(), flags.max_seq_length)


if __name__ == "__main__":
    define_flags()
    program.run(main)
