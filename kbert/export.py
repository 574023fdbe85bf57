"""Exports for serving: python -m kbert.export --from=RUN/finetuning/best --to=models/bert/1"""

import pathlib

from absl import flags as absl_flags

from kbert import program
from kbert.errors import UserError
from kbert.settings import EXPORT_METHODS

# float32 in another order of summation: padding to another length, other kernels.
TOLERANCE = 1e-5


def export(source, target, method=None, pairs=None, max_seq_length=None, report=print):
    """Writes a SavedModel that answers text, and compares it with `kbert.Predictor`.

    It is made whole or not at all: before it gets its name, a process of its own that has
    TensorFlow and not kbert loads it from another folder and answers some texts.

    Args:
        source: as for `BertModel.from_pretrained`. target: folder to make.
        method, pairs, max_seq_length: see `kbert.serving.saved_model.load_method`.
        report: called with lines of text.

    Raises:
        UserError: a folder that cannot be read, or exists; an argument that does not fit the model;
            answers that differ from the Predictor's.
    """
    from kbert.serving import saved_model
    from kbert.train.checkpoint import replace_folder

    target = _free(target)
    found = saved_model.load_method(source, method, pairs, max_seq_length)
    _tell_source(source, found.name, found.model, found.max_seq_length, report)
    functions, notes = {}, []

    def write(path):
        functions.update(saved_model.save_method(found, path))
        samples = saved_model.samples(found)
        answers = saved_model.answers_alone(samples, path)
        notes.append(_checked(answers, found.predicted(**samples), "kbert.predict"))
        notes.append(_warm_up(path, functions, samples, target))

    replace_folder(target, write)
    _tell_target(target, [*notes, *_contract(found, functions), _how_to_serve(target)], report)


def export_hub(source, target, max_seq_length=None, report=print):
    """Writes `preprocess` and `encoder` with TF Hub's text API; see `kbert.serving.hub`.

    Whole or not at all, and compared with the model as `export` does.

    Args:
        source: as for `BertModel.from_pretrained`. target: folder to make.
        max_seq_length: tokens of a sequence of the preprocessor; None: 128.
        report: called with lines of text.

    Raises:
        UserError: a folder that cannot be read, or exists; a length that the model does not have.
    """
    from kbert.data import BertTokenizer
    from kbert.formats import find_folder
    from kbert.serving import hub, saved_model
    from kbert.tasks.predictor import check_length
    from kbert.train.checkpoint import replace_folder

    target, length = _free(target), max_seq_length or 128
    tokenizer = BertTokenizer.from_pretrained(find_folder(source))
    model = saved_model.load_encoder(find_folder(source), output_hidden_states=True)
    check_length(length, model.config)
    _tell_source(source, "encoder", model, length, report)
    notes = []

    def write(path):
        hub.save_preprocessor(tokenizer, length, path / "preprocess")
        hub.save_encoder(model, path / "encoder")
        samples = {"text": list(saved_model.SAMPLES)}
        outputs = model(tokenizer(samples["text"], max_length=length), training=False)
        answers = saved_model.answers_alone(samples, path / "preprocess", path / "encoder")
        wanted = {"sequence_output": outputs["last_hidden_state"].numpy()}
        wanted["pooled_output"] = outputs["pooler_output"].numpy()
        notes.append(_checked(answers, wanted, "kbert.BertModel"))

    replace_folder(target, write)
    how = f'use it: kbert.hub.BertLayer("{target / "encoder"}"); in tf_keras hub.KerasLayer'
    _tell_target(target, [*notes, how], report)


def _free(target):
    target = pathlib.Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"{target} exists and is not empty. Name the next version, or remove it: TensorFlow "
            f"Serving may be reading it."
        )
    return target


def _tell_source(source, what, model, length, report):
    from kbert.formats import find_folder, folder_format

    config = model.config
    report(
        f"from {source} ({folder_format(find_folder(source))}): {what}, "
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, {length} tokens"
    )


def _tell_target(target, notes, report):
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    report(f"to {target}: {size / 1e6:,.1f} MB")
    for line in notes:
        report(line)


def _checked(answers, wanted, whose):
    """A line on how far answers are from what they should be.

    Raises:
        UserError: too far.
    """
    from kbert.serving.saved_model import largest_difference

    difference, count = largest_difference(answers, wanted), len(next(iter(wanted.values())))
    if not difference <= TOLERANCE:
        raise UserError(
            f"the SavedModel answers {count} texts otherwise than {whose}: off by "
            f"{difference:.1e}, allowed are {TOLERANCE:g}. Nothing was written."
        )
    return (
        f"checked in a process without kbert: {count} texts, answers as those of {whose} (largest "
        f"difference {difference:.1e})"
    )


def _warm_up(path, functions, samples, target):
    from kbert.serving.warmup import write_warmup

    try:
        count = write_warmup(path, functions, samples, target.parent.name)
    except ImportError:
        return "note: no warm-up requests, which need TF Serving's API: pip install 'kbert[serve]'"
    return f"warm-up requests: {count}"


def _contract(method, functions):
    """Lines on the signatures."""
    texts = ", ".join(f"{n} ({'B' if a == 1 else 'B, C'})" for n, a in method.texts.items())
    takes = {
        "serving_default": f"{texts} string",
        "from_ids": "input_ids, attention_mask, token_type_ids",
        "from_examples": f"inputs (B,) serialized tf.Examples with {', '.join(method.texts)}",
        "classify": "inputs, for Classify: classes and scores (B, C)",
        "regress": "inputs, for Regress: outputs (B,)",
    }
    for name in functions:
        yield f"  {name}: {takes[name]}"
        if name == "serving_default":
            for output, meaning in method.contract.items():
                yield f"    -> {output} {meaning}"


def _how_to_serve(target):
    if not target.name.isdigit():
        return f"note: TensorFlow Serving looks for numbered folders, such as {target / '1'}"
    return (
        f"serve it: tensorflow_model_server --model_name={target.parent.name} "
        f"--model_base_path={target.parent} --port=8500 --rest_api_port=8501"
    )


def define_flags():
    """Defines the flags; not on import, since programs share names."""
    absl_flags.DEFINE_string(
        "from",
        None,
        "folder of weights in any format, or the name of a model on the Hugging Face hub",
    )
    absl_flags.DEFINE_string(
        "to",
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
        ["serving", "hub"],
        "serving: a SavedModel that answers; hub: preprocess/ and encoder/ with TF Hub's text API",
    )
    absl_flags.DEFINE_bool(
        "pairs",
        None,
        "whether a text comes with a second one, text_pair; default: as in fine-tuning",
    )
    absl_flags.DEFINE_integer(
        "max_seq_length",
        None,
        "tokens of a sequence; default: as in fine-tuning, or as the model can",
    )


def main():
    """Runs `export` or `export_hub` with the flags."""
    values = {name: absl_flags.FLAGS[name].value for name in ("from", "to")}
    for name in values:
        if not values[name]:
            raise UserError(f"--{name} is missing: python -m kbert.export --from=A --to=models/b/1")
    flags = absl_flags.FLAGS
    program.import_tensorflow().config.set_visible_devices([], "GPU")  # it needs none, nor TF32
    if flags.format == "serving":
        export(*values.values(), flags.method, flags.pairs, flags.max_seq_length)
    elif flags.method or flags.pairs is not None:
        raise UserError("--method and --pairs are for --format=serving; a hub encoder has no head.")
    else:
        export_hub(*values.values(), flags.max_seq_length)


if __name__ == "__main__":
    define_flags()
    program.run(main)
