"""What TFX's Transform and Trainer call: texts to ids, and a BERT that learns to classify them.

Transform tokenizes with the tokenizer of a folder of weights, and the model learns from its ids;
what is exported takes text and has the same tokenizer in its graph, so that what is served is what
was trained. `run_fn` compares the two on the first texts.

`custom_config`, the same dict for Transform and Trainer, as `pipeline.py` makes it:
    weights: str, folder of a BERT in any format that kbert reads; the head may be missing
    label_names: list of str, the names of the labels 0, 1, ...
    takes_pairs: bool, whether a text comes with a second one, text_pair
    max_seq_length: int, tokens of an example; longer ones are cut
    batch_size: int   learning_rate: float, the peak   seed: int
"""

import pathlib
import warnings

import keras
import tensorflow as tf
from absl import logging

from kbert import BertForSequenceClassification, BertTokenizer
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES
from kbert.inference.predictor import check_length
from kbert.model.weights import open_weights
from kbert.serving.export import export
from kbert.tasks.classify import Classification
from kbert.tasks.registry import write_task
from kbert.train import AdamW, WarmupPolynomialDecay
from kbert.utils.formats import find_folder

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
_WIDTHS = 16  # batches are cut to a multiple of so many tokens, so that there are few shapes
_SHUFFLED = 10_000  # examples to draw from
_HEAD = ["sequence_classifier"]  # that of the weights may be for other labels


def check(custom_config):
    """Refuses settings that are missing or do not fit the weights.

    Raises:
        UserError: names the first one that is wrong.
    """
    for name in _SETTINGS:
        if name not in (custom_config or {}):
            raise UserError(f"custom_config lacks {name!r}; it must have {', '.join(_SETTINGS)}.")
    labels, batch_size = custom_config["label_names"], custom_config["batch_size"]
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(f"labels must be at least two different names; got {', '.join(labels)}.")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}.")
    heads = BertForSequenceClassification.task_heads
    with open_weights(custom_config["weights"], _HEAD, heads) as (config, _):
        check_length(custom_config["max_seq_length"], config)


def preprocessing_fn(inputs, custom_config):
    """The features of texts, for Transform, whose outputs must be int64, float32 or string.

    Args:
        inputs: dict of `text`, with pairs `text_pair`, (B,) or (B, 1) string, and `label`, (B,) or
            (B, 1) int64. custom_config: see the module.

    Returns:
        dict of the `ENCODER_FEATURES`, (B, L) int64, `label` (B,) int64, and the texts as they are,
        (B,) string.

    Raises:
        UserError: a column is missing, of another type, or empty in some rows; a setting that
            `check` refuses.
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
    """(B,) of one column."""
    if name not in inputs:
        raise UserError(f"the examples have no {name!r}; they have {', '.join(sorted(inputs))}.")
    column = inputs[name]
    if isinstance(column, tf.SparseTensor):  # Transform's form of what not every row has
        raise UserError(f"some examples have no {name!r}. Fill it in, or leave them out.")
    if column.dtype != dtype:
        raise UserError(f"{name!r} must be {dtype.name} in all examples; got {column.dtype.name}.")
    return tf.reshape(column, [-1])


def examples_dataset(patterns, custom_config):
    """What Transform wrote, an example at a time.

    Args:
        patterns: list of str, of gzipped TFRecords. custom_config: see the module.

    Returns:
        tf.data.Dataset of dicts as `preprocessing_fn` makes them, without the batch.

    Raises:
        UserError: no file is there.
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


def batches(examples, batch_size):
    """Features and labels for `fit`, cut to what the longest text of the batch needs.

    Args:
        examples: of `examples_dataset`. batch_size: int.

    Returns:
        tf.data.Dataset of (features, {"logits": (B,) int64}).
    """

    def cut(batch):
        lengths = tf.reduce_sum(batch["attention_mask"], axis=1)
        width = -(-tf.reduce_max(lengths) // _WIDTHS) * _WIDTHS
        features = {name: tf.cast(batch[name][:, :width], tf.int32) for name in ENCODER_FEATURES}
        return features, {"logits": batch["label"]}

    return examples.batch(batch_size).map(cut).prefetch(2)


def check_examples(examples, tokenizer, custom_config):
    """Refuses labels that have no name, and ids that are not the tokenizer's.

    Args:
        examples: of `examples_dataset`; all of their labels are looked at, and the first batch of
            ids. tokenizer: of the model. custom_config: see the module.

    Raises:
        UserError: a label or an id is wrong, or there are no examples.
    """
    batch = next(iter(examples.batch(custom_config["batch_size"])), None)
    if batch is None:
        raise UserError("there are no transformed examples: the files are empty.")
    texts = [batch[name] for name in _text_names(custom_config)]
    features = tokenizer(*texts, max_length=custom_config["max_seq_length"])
    for name, wanted in features.items():
        wrong = tf.reduce_any(batch[name] != tf.cast(wanted, tf.int64), axis=1).numpy()
        if wrong.any():
            text = texts[0].numpy()[wrong][0].decode("utf-8", "replace")
            raise UserError(
                f"Transform's {name} of {text[:60]!r} are not those of the tokenizer of "
                f"{custom_config['weights']}, which would be served. Run Transform again."
            )
    C = len(custom_config["label_names"])
    for labels in examples.map(lambda example: example["label"]).batch(1024):
        wrong = tf.boolean_mask(labels, (labels < 0) | (labels >= C)).numpy()
        if wrong.size:
            raise UserError(
                f"labels must be 0 to {C - 1}, for {', '.join(custom_config['label_names'])}; got "
                f"{wrong[0]}."
            )


def make_model(custom_config, train_steps):
    """A BERT with a head for the labels, compiled for `train_steps` steps."""
    names = tuple(custom_config["label_names"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a head that is to be learnt
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


def run_fn(fn_args):
    """Trains, and writes what TensorFlow Serving and Evaluator load.

    Args:
        fn_args: TFX's FnArgs, of which `train_files`, `train_steps`, `eval_files`, `eval_steps`
            (None: all examples), `model_run_dir`, `serving_model_dir` and `custom_config` are used.
            To `serving_model_dir` goes what `python -m kbert.export` writes of the weights in
            `MODEL_RUN_DIR/kbert`, which has the signatures of `kbert.serving.signatures`.

    Raises:
        UserError: settings or examples that cannot be used; an export that does not answer as
            `kbert.predict` does.
    """
    config, train_steps = fn_args.custom_config, fn_args.train_steps
    check(config)
    if not train_steps:
        raise UserError("train_args must say how long to train: TrainArgs(num_steps=1000).")
    tokenizer = BertTokenizer.from_pretrained(find_folder(config["weights"]))
    train = examples_dataset(fn_args.train_files, config)
    held_out = examples_dataset(fn_args.eval_files, config)
    for examples in (train, held_out):
        check_examples(examples, tokenizer, config)
    keras.utils.set_random_seed(config["seed"])
    model = make_model(config, train_steps)
    with warnings.catch_warnings():  # the held-out examples end where they end
        warnings.filterwarnings("ignore", "Your input ran out of data")
        model.fit(
            batches(train.shuffle(_SHUFFLED, config["seed"]).repeat(), config["batch_size"]),
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
    write_task(folder, task, config["takes_pairs"])
    tf.config.experimental.enable_tensor_float_32_execution(False)  # export compares to 1e-5
    export(folder, fn_args.serving_model_dir, report=logging.info)
