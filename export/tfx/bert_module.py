"""User module for TFX's Transform and Trainer: tokenizes text and trains a BERT classifier.

Transform tokenizes the text with the tokenizer of a folder of weights, and the Trainer trains the
model on the resulting ids. The export takes text and has the same tokenizer in its graph; `run_fn`
checks on the first batch that this tokenizer produces the same ids as Transform.

`custom_config` is the same dict for Transform and Trainer; `pipeline.py` creates it. Its keys are:
    weights: str, folder of a BERT in any format that kbert reads; the head may be missing
    label_names: list of str, the names of the labels 0, 1, ...
    takes_pairs: bool, whether each text has a second text, text_pair
    max_seq_length: int, maximum length of an example in tokens; longer examples are truncated
    batch_size: int, examples per step
    learning_rate: float, the peak, after the warmup
    seed: int, of the head's initial weights, the order of the examples, and dropout
"""

import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from absl import logging

from kbert import BertForSequenceClassification, BertTokenizer
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES
from kbert.model.weights import open_weights
from kbert.serving.export import export
from kbert.tasks.arguments import check_length
from kbert.tasks.classify import Classification
from kbert.tasks.registry import write_task_settings
from kbert.train import AdamW, WarmupPolynomialDecay
from kbert.utils.formats import find_folder

if TYPE_CHECKING:
    from tfx import v1 as tfx

WEIGHTS = "kbert"  # folder in the Trainer's model_run
_SETTINGS = (
    "weights",
    "label_names",
    "takes_pairs",
    "max_seq_length",
    "batch_size",
    "learning_rate",
    "seed",
)
_LENGTH_MULTIPLE = 16  # batch lengths are multiples of this, to limit the number of shapes
_SHUFFLE_BUFFER = 10_000  # examples
_HEAD = ["sequence_classifier"]  # may be missing from the weights, or have other labels


def check(custom_config: Mapping[str, Any] | None) -> None:
    """Checks the settings.

    Args:
        custom_config: see the docstring of the module.

    Raises:
        UserError: a setting is missing, invalid or incompatible with the weights.
    """
    for name in _SETTINGS:
        if name not in (custom_config or {}):
            raise UserError(f"custom_config lacks {name!r}; it must have {', '.join(_SETTINGS)}.")
    labels, batch_size = custom_config["label_names"], custom_config["batch_size"]
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(
            f"label_names must be at least two different names; got {', '.join(labels)}."
        )
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}.")
    heads = BertForSequenceClassification.task_heads
    with open_weights(custom_config["weights"], _HEAD, heads) as (config, _):
        check_length(custom_config["max_seq_length"], config)


def preprocessing_fn(
    inputs: "Mapping[str, tf.Tensor | tf.SparseTensor]", custom_config: Mapping[str, Any]
) -> dict[str, tf.Tensor]:
    """Tokenizes texts in Transform.

    Args:
        inputs: dict of `text`, `text_pair` if `takes_pairs`, and `label`; (B,) or (B, 1) each. The
            texts are strings, the labels int64.
        custom_config: see the docstring of the module.

    Returns:
        dict of the `ENCODER_FEATURES`, (B, L) int64 each (Transform does not support int32),
        `label`, (B,) int64, and the unchanged texts, (B,) string each.

    Raises:
        UserError: a column is missing, has another type, or is empty in some rows; or a setting is
            invalid.
    """
    check(custom_config)
    tokenizer = BertTokenizer.from_pretrained(find_folder(custom_config["weights"]))
    texts = {name: _column(inputs, name, tf.string) for name in _text_names(custom_config)}
    features = tokenizer(*texts.values(), max_length=custom_config["max_seq_length"])
    label = _column(inputs, "label", tf.int64)
    return {n: tf.cast(x, tf.int64) for n, x in features.items()} | {"label": label} | texts


def _text_names(custom_config):
    return ["text", "text_pair"] if custom_config["takes_pairs"] else ["text"]


def _column(inputs, name, dtype):
    """Checks a column of the examples; returns it with the shape (B,)."""
    if name not in inputs:
        raise UserError(f"the examples have no {name!r}; they have {', '.join(sorted(inputs))}.")
    column = inputs[name]
    # Transform makes a column sparse if it is empty in some rows.
    if isinstance(column, tf.SparseTensor):
        raise UserError(f"some examples have no {name!r}. Add it, or remove these examples.")
    if column.dtype != dtype:
        raise UserError(f"{name!r} must be {dtype.name} in all examples; got {column.dtype.name}.")
    return tf.reshape(column, [-1])


def examples_dataset(
    patterns: Sequence[str], custom_config: Mapping[str, Any]
) -> "tf.data.Dataset[dict[str, tf.Tensor]]":
    """Reads the output of Transform.

    Args:
        patterns: globs of gzipped TFRecord files.
        custom_config: see the docstring of the module.

    Returns:
        tf.data.Dataset of dicts as returned by `preprocessing_fn`, without the batch axis.

    Raises:
        UserError: no file matches.
    """
    files = sorted(tf.io.gfile.glob(patterns))
    if not files:
        raise UserError(f"there are no transformed examples in {', '.join(patterns)}.")
    L = custom_config["max_seq_length"]
    features = {name: tf.io.FixedLenFeature([L], tf.int64) for name in ENCODER_FEATURES}
    features |= {name: tf.io.FixedLenFeature([], tf.string) for name in _text_names(custom_config)}
    features["label"] = tf.io.FixedLenFeature([], tf.int64)
    records = tf.data.TFRecordDataset(files, compression_type="GZIP")
    return records.map(lambda record: tf.io.parse_single_example(record, features))


def batches(
    examples: "tf.data.Dataset[dict[str, tf.Tensor]]", batch_size: int
) -> "tf.data.Dataset[tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]]":
    """Batches features and labels for `fit`; cuts the padding to a multiple of 16 tokens.

    Args:
        examples: dataset returned by `examples_dataset`.
        batch_size: B.

    Returns:
        tf.data.Dataset of (features, labels): the `ENCODER_FEATURES`, (B, L) int32 each, and
        {"logits": (B,) int64}.
    """

    def truncate(batch):
        lengths = tf.reduce_sum(batch["attention_mask"], axis=1)
        L = -(-tf.reduce_max(lengths) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        features = {name: tf.cast(batch[name][:, :L], tf.int32) for name in ENCODER_FEATURES}
        return features, {"logits": batch["label"]}

    return examples.batch(batch_size).map(truncate).prefetch(2)


def check_examples(
    examples: "tf.data.Dataset[dict[str, tf.Tensor]]",
    tokenizer: BertTokenizer,
    custom_config: Mapping[str, Any],
) -> None:
    """Checks that all labels have names, and that Transform used the same tokenizer.

    Args:
        examples: dataset returned by `examples_dataset`; all labels and the ids of the first batch
            are checked.
        tokenizer: the model's tokenizer.
        custom_config: see the docstring of the module.

    Raises:
        UserError: a label has no name, ids differ from the tokenizer's, or there are no examples.
    """
    batch = next(iter(examples.batch(custom_config["batch_size"])), None)
    if batch is None:
        raise UserError("there are no transformed examples: the files are empty.")
    texts = [batch[name] for name in _text_names(custom_config)]
    features = tokenizer(*texts, max_length=custom_config["max_seq_length"])
    for name, expected in features.items():
        wrong = tf.reduce_any(batch[name] != tf.cast(expected, tf.int64), axis=1).numpy()
        if wrong.any():
            text = texts[0].numpy()[wrong][0].decode("utf-8", "replace")
            raise UserError(
                f"Transform's {name} of {text[:60]!r} differ from the output of the tokenizer in "
                f"{custom_config['weights']}, which the export would contain. Run Transform again."
            )
    C = len(custom_config["label_names"])
    for labels in examples.map(lambda example: example["label"]).batch(1024):
        wrong = tf.boolean_mask(labels, (labels < 0) | (labels >= C)).numpy()
        if wrong.size:
            raise UserError(
                f"labels must be 0 to {C - 1}, for {', '.join(custom_config['label_names'])}; got "
                f"{wrong[0]}."
            )


def make_model(custom_config: Mapping[str, Any], train_steps: int) -> BertForSequenceClassification:
    """Creates a BERT with a head for the labels, compiled for `train_steps` training steps."""
    names = tuple(custom_config["label_names"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the head is randomly initialized
        model = BertForSequenceClassification.from_pretrained(
            custom_config["weights"],
            allow_missing=_HEAD,
            num_labels=len(names),
            label_names=names,
            problem_type=Classification.problem_type,
        )
    schedule = WarmupPolynomialDecay(
        custom_config["learning_rate"], train_steps, warmup_steps=train_steps // 10
    )
    model.compile(
        AdamW(schedule, bias_correction=True, global_clipnorm=1.0),
        loss={"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        metrics={"logits": ["accuracy"]},
    )
    return model


def run_fn(fn_args: "tfx.components.FnArgs") -> None:
    """Trains the model and exports it for TensorFlow Serving and Evaluator.

    The weights are saved in `model_run_dir/kbert` and exported to `serving_model_dir`, as by
    `python -m kbert.export`.

    Args:
        fn_args: TFX's FnArgs; `run_fn` reads `train_files`, `train_steps`, `eval_files`,
            `eval_steps` (None: all examples), `model_run_dir`, `serving_model_dir` and
            `custom_config`.

    Raises:
        UserError: settings or examples are invalid, or the outputs of the export differ from
            `kbert.predict`.
    """
    config, train_steps = fn_args.custom_config, fn_args.train_steps
    check(config)
    if not train_steps:
        raise UserError("train_args must specify the number of steps: TrainArgs(num_steps=1000).")
    tokenizer = BertTokenizer.from_pretrained(find_folder(config["weights"]))
    train = examples_dataset(fn_args.train_files, config)
    held_out = examples_dataset(fn_args.eval_files, config)
    for examples in (train, held_out):
        check_examples(examples, tokenizer, config)
    keras.utils.set_random_seed(config["seed"])
    model = make_model(config, train_steps)
    with warnings.catch_warnings():  # the evaluation dataset is finite
        warnings.filterwarnings("ignore", "Your input ran out of data")
        model.fit(
            batches(train.shuffle(_SHUFFLE_BUFFER, config["seed"]).repeat(), config["batch_size"]),
            steps_per_epoch=train_steps,
            validation_data=batches(held_out, config["batch_size"]),
            validation_steps=fn_args.eval_steps,
            callbacks=[keras.callbacks.TensorBoard(fn_args.model_run_dir, write_graph=False)],
            shuffle=False,
            verbose=2,
        )
    folder = pathlib.Path(fn_args.model_run_dir) / WEIGHTS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    task = Classification(tokenizer, model.config.label_names, config["max_seq_length"])
    write_task_settings(folder, task, config["takes_pairs"])
    tf.config.experimental.enable_tensor_float_32_execution(False)  # export compares to 1e-5
    export(folder, fn_args.serving_model_dir, report=logging.info)
