"""What TFX calls, without TFX; and, marked slow, its whole pipeline.

    python -m pytest -m slow tests/test_tfx.py

makes an environment with TFX, which needs glibc 2.39. Where glibc is older, GLIBC may name a folder
in which the packages libc6, libgcc-s1 and libstdc++6 of Debian 13 are unpacked. TFX_PYTHON may name
a command that starts the Python of an environment that has TFX and this kbert.
"""

import csv
import importlib.util
import os
import pathlib
import platform
import re
import runpy
import shlex
import subprocess
import sys
import types
import venv

import keras
import numpy as np
import pytest
import tensorflow as tf

import kbert
from kbert.errors import UserError
from kbert.serving import saved_model
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.utils.formats import EXPORT_FILE

ROOT = pathlib.Path(__file__).parent.parent
PIPELINE = ROOT / "export" / "tfx" / "pipeline.py"
SPEC = importlib.util.spec_from_file_location("bert_module", PIPELINE.with_name("bert_module.py"))
bert_module = importlib.util.module_from_spec(SPEC)
sys.modules["bert_module"] = bert_module  # where the script and AutoGraph look for it
SPEC.loader.exec_module(bert_module)

GOOD, BAD, OTHER = ("good", "fine", "great"), ("bad", "poor", "dull"), ("a", "the", "film", "is")
MARKS = (",", '"', ".", "\n", "中", "é")  # what CSV files quote, and more than a byte
BERT = {  # learns these reviews in 100 steps
    **{"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3},
    **{"intermediate_size": 48, "max_position_embeddings": 40, "initializer_range": 0.2},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


def reviews(count, seed):
    """(text, label) pairs; a single word of each text tells the label."""
    rng = np.random.default_rng(seed)
    for label in rng.integers(0, 2, count):
        words = list(rng.choice([*OTHER, *MARKS], rng.integers(2, 20)))
        words.insert(rng.integers(len(words)), rng.choice((BAD, GOOD)[label]))
        yield " ".join(words), int(label)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A fresh BERT as pretraining leaves one, without a head for labels."""
    folder = tmp_path_factory.mktemp("weights")
    vocab = [*SPECIAL_TOKENS, *GOOD, *BAD, *OTHER, ",", '"', ".", "中", "e"]
    write_vocab(vocab, folder / "vocab.txt")
    keras.utils.set_random_seed(0)
    config = kbert.BertConfig(vocab_size=len(vocab), **BERT)
    kbert.BertForPreTraining(config).save_pretrained(folder)
    kbert.BertTokenizer(folder / "vocab.txt").save_pretrained(folder)
    return folder


@pytest.fixture
def config(weights):
    return {
        **{"weights": str(weights), "label_names": ["negative", "positive"], "takes_pairs": False},
        **{"max_seq_length": 20, "batch_size": 32, "learning_rate": 1e-2, "seed": 0},
    }


def columns(rows):
    """Columns as Transform gives them, (B, 1)."""
    *texts, labels = zip(*rows, strict=True)
    names = ("text", "text_pair")[: len(texts)]
    found = {n: tf.constant(t)[:, None] for n, t in zip(names, texts, strict=True)}
    return {**found, "label": tf.constant(labels, tf.int64)[:, None]}


def transformed(rows, custom_config, path):
    """Writes rows as Transform writes them, and returns the pattern of the file."""
    outputs = bert_module.preprocessing_fn(columns(rows), custom_config)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(f"{path}-00000-of-00001.gz", options) as file:
        for i in range(len(rows)):
            example = tf.train.Example()
            for name, value in outputs.items():
                row = np.atleast_1d(value[i].numpy())
                feature = example.features.feature[name]
                list_ = feature.bytes_list if value.dtype == tf.string else feature.int64_list
                list_.value.extend(row.tolist())
            file.write(example.SerializeToString())
    return f"{path}-*"


def arguments(custom_config, folder, rows, **changes):
    """What TFX's Trainer gives `run_fn`."""
    return types.SimpleNamespace(
        train_files=[transformed(rows, custom_config, folder / "train")],
        eval_files=[transformed(list(reviews(50, 1)), custom_config, folder / "eval")],
        serving_model_dir=str(folder / "model" / "Format-Serving"),
        model_run_dir=str(folder / "model_run"),
        custom_config=custom_config,
        **{"train_steps": 100, "eval_steps": None} | changes,
    )


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_ids_are_those_of_the_tokenizer(in_graph, config, weights):
    rows = [("A GOOD, bad film", 1), ("", 0), ("is it é 中？", 1), ("the " * 50, 0)]
    inputs = columns(rows)
    run = lambda **inputs: bert_module.preprocessing_fn(inputs, config)  # noqa: E731
    found = tf.function(run)(**inputs) if in_graph else run(**inputs)
    tokenizer = kbert.BertTokenizer.from_pretrained(weights)
    wanted = tokenizer([text for text, _ in rows], max_length=20)
    assert set(found) == {*wanted, "label", "text"}
    for name, value in wanted.items():
        assert found[name].dtype == tf.int64 and found[name].shape == (4, 20)
        np.testing.assert_array_equal(found[name], value)
    np.testing.assert_array_equal(found["label"], [1, 0, 1, 0])
    np.testing.assert_array_equal(found["text"], inputs["text"][:, 0])


def test_pairs(config, weights):
    rows = [("a film", "good", 1), ("the film is", "bad bad", 0), ("a", "a", 1)]
    found = bert_module.preprocessing_fn(columns(rows), {**config, "takes_pairs": True})
    tokenizer = kbert.BertTokenizer.from_pretrained(weights)
    texts, pairs, _ = zip(*rows, strict=True)
    wanted = tokenizer(list(texts), list(pairs), max_length=20)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["token_type_ids"].numpy().sum(axis=1).tolist() == [2, 3, 2]
    assert found["text_pair"].numpy().tolist() == [b"good", b"bad bad", b"a"]


SPARSE = tf.sparse.from_dense(tf.constant([["a"], [""]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "the examples have no 'text'; they have label."),
        ({"text": SPARSE}, "some examples have no 'text'. Add it"),
        ({"text": tf.constant([[1], [2]], tf.int64)}, "must be string in all examples; got int64"),
        ({"label": tf.constant([["no"], ["yes"]])}, "'label' must be int64 in all examples; got"),
    ],
)
def test_columns_that_cannot_be_used(change, message, config):
    inputs = columns([("a", 0), ("b", 1)]) | change
    with pytest.raises(UserError, match=message):
        bert_module.preprocessing_fn({n: x for n, x in inputs.items() if x is not None}, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ["one"]}, "label_names must be at least two different names; got one."),
        ({"label_names": ["a", "b", "a"]}, "label_names must be at least two different names"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0."),
        (
            {"max_seq_length": 41},
            "max_seq_length must be 5 to 40, the model's max_position_embeddings",
        ),
        ({"weights": "/nowhere/at all"}, "there is no folder /nowhere/at all."),
        (
            {"seed": None},
            "custom_config lacks 'seed'; it must have weights, label_names, takes_pairs",
        ),
    ],
)
def test_settings_that_do_not_fit(change, message, config):
    changed = {name: value for name, value in (config | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        bert_module.check(changed)
    with pytest.raises(UserError, match=message):
        bert_module.preprocessing_fn(columns([("a", 0)]), changed)
    with pytest.raises(UserError, match=message):
        bert_module.run_fn(types.SimpleNamespace(custom_config=changed, train_steps=1))


def test_batches_are_as_wide_as_their_texts_need(config, tmp_path):
    rows = [("a film", 0), ("good", 1), ("the " * 15, 1), ("the " * 30, 0), ("", 0)]
    pattern = transformed(rows, config, tmp_path / "train")
    examples = bert_module.examples_dataset([pattern], config)
    found = list(bert_module.batches(examples, 2))
    assert [x["input_ids"].shape for x, _ in found] == [(2, 16), (2, 20), (1, 16)]
    assert {x.dtype for features, _ in found for x in features.values()} == {tf.int32}
    assert [y["logits"].numpy().tolist() for _, y in found] == [[0, 1], [1, 0], [0]]
    ids = np.concatenate([x["input_ids"][:, :16] for x, _ in found])
    wanted = bert_module.preprocessing_fn(columns(rows), config)["input_ids"][:, :16]
    np.testing.assert_array_equal(ids, wanted)


@pytest.mark.slow
def test_it_trains_and_exports_what_kbert_export_makes(config, tmp_path):
    fn_args = arguments(config, tmp_path, list(reviews(400, 0)))
    bert_module.run_fn(fn_args)
    texts, labels = zip(*reviews(50, 2), strict=True)
    folder = tmp_path / "model_run" / bert_module.WEIGHTS
    found = kbert.Predictor.from_pretrained(folder, backend="keras").classify(list(texts))
    right = [row["label"] == config["label_names"][i] for row, i in zip(found, labels, strict=True)]
    assert np.mean(right) >= 0.9  # a model that learnt nothing has about 0.5
    loaded = tf.saved_model.load(fn_args.serving_model_dir)
    public = {"serving_default", "from_ids", "from_examples", "classify"}
    assert set(loaded.signatures) == public | {"internal_encode"}
    answers = loaded.signatures["serving_default"](text=tf.constant(texts))
    wanted = [[row["scores"][name] for name in config["label_names"]] for row in found]
    np.testing.assert_allclose(answers["probabilities"], wanted, atol=1e-5)
    features = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a good film"]))}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    serialized = tf.constant([example.SerializeToString()])  # as Evaluator asks
    assert loaded.signatures["from_examples"](inputs=serialized)["label"] == b"positive"
    metadata = pathlib.Path(fn_args.serving_model_dir) / "assets.extra" / EXPORT_FILE
    assert '"max_seq_length": 20' in metadata.read_text() and '"positive"' in metadata.read_text()
    assert list((tmp_path / "model_run").rglob("events.out.tfevents*"))


def test_a_head_for_other_labels_is_left_out(config, tmp_path):
    other = tmp_path / "other"
    fields = {**BERT, "vocab_size": 20, "num_labels": 3}
    kbert.BertForSequenceClassification(kbert.BertConfig(**fields)).save_pretrained(other)
    kbert.BertTokenizer.from_pretrained(config["weights"]).save_pretrained(other)
    changed = {**config, "weights": str(other)}
    bert_module.check(changed)
    model = bert_module.make_model(changed, train_steps=10)
    assert model.config.num_labels == 2 and model.config.label_names == ("negative", "positive")
    assert model({"input_ids": tf.constant([[2, 5, 3]])})["logits"].shape == (1, 2)


def test_ids_of_another_tokenizer_are_refused(config, weights, tmp_path):
    fn_args = arguments(config, tmp_path, list(reviews(40, 0)))
    other = tmp_path / "other"
    kbert.BertForPreTraining.from_pretrained(weights).save_pretrained(other)
    vocab = (weights / "vocab.txt").read_text(encoding="utf-8").split()
    write_vocab([*SPECIAL_TOKENS, *reversed(vocab[5:])], tmp_path / "vocab.txt")
    kbert.BertTokenizer(tmp_path / "vocab.txt").save_pretrained(other)
    fn_args.custom_config = {**config, "weights": str(other)}
    with pytest.raises(UserError, match=r"Transform's input_ids of '.*' differ from the out"):
        bert_module.run_fn(fn_args)
    assert not pathlib.Path(fn_args.serving_model_dir).exists()


def test_training_without_steps_or_with_bad_examples(config, tmp_path):
    fn_args = arguments(config, tmp_path, list(reviews(4, 0)), train_steps=None)
    with pytest.raises(UserError, match="train_args must specify the number of steps"):
        bert_module.run_fn(fn_args)
    fn_args.train_steps, fn_args.train_files = 1, [str(tmp_path / "none-*")]
    with pytest.raises(UserError, match="there are no transformed examples in /"):
        bert_module.run_fn(fn_args)
    fn_args.train_files = [transformed([("a", 0), ("b", 2)], config, tmp_path / "label_names")]
    with pytest.raises(UserError, match="labels must be 0 to 1, for negative, positive; got 2"):
        bert_module.run_fn(fn_args)
    fn_args.train_files = [str(tmp_path / "none-*")]
    with tf.io.TFRecordWriter(str(tmp_path / "none-0"), "GZIP"):
        pass
    with pytest.raises(UserError, match="the files are empty"):
        bert_module.run_fn(fn_args)


def write_data(folder, train, held_out):
    """Writes CSV files as the pipeline reads them."""
    folder.mkdir()
    for name, rows in (("train", train), ("eval", held_out)):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])


def pipeline_arguments(folder, weights, changes):
    """Arguments of the pipeline: of `folder`/data, to `folder`/root and `folder`/models."""
    settings = {"data": folder / "data", "weights": weights, "root": folder / "root"}
    settings |= {"serving": folder / "models" / "bert", "max_seq_length": 20, "train_steps": 100}
    settings |= {"learning_rate": 1e-2, **changes}
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"tfx cannot be imported \(.*tfx.*\); see docs/serving.md for its requirements."),
        ({"data": "/nowhere"}, r"/nowhere has no train\*.csv."),
        ({"train_steps": 0}, "--train_steps must be at least 1; got 0."),
        ({"min_accuracy": 70.0}, "--min_accuracy must be 0 to 1; got 70.0."),
        ({"label_names": "good"}, "label_names must be at least two different names; got good."),
    ],
)
def test_the_pipeline_says_what_is_wrong_in_a_line(
    change, message, weights, tmp_path, monkeypatch, capsys
):
    write_data(tmp_path / "data", reviews(4, 0), reviews(4, 1))
    monkeypatch.setitem(sys.modules, "tfx", None)
    monkeypatch.setattr(
        sys, "argv", ["pipeline.py", *pipeline_arguments(tmp_path, weights, change)]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PIPELINE), run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert re.fullmatch(f"error: {message}\n", said.err), said.err
    assert not (tmp_path / "root").exists()


@pytest.fixture(scope="module")
def tfx_python(tmp_path_factory):
    """The start of a command: Python with TFX and this kbert."""
    if os.environ.get("TFX_PYTHON"):
        return shlex.split(os.environ["TFX_PYTHON"])
    loader, version = [], platform.libc_ver()[1]
    if os.environ.get("GLIBC"):
        libraries = pathlib.Path(os.environ["GLIBC"]) / "usr" / "lib" / "x86_64-linux-gnu"
        loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    elif tuple(map(int, version.split("."))) < (2, 39):
        pytest.skip(
            f"TFX needs glibc 2.39; here is {version}, and GLIBC names no folder of another"
        )
    folder = tmp_path_factory.mktemp("tfx")
    venv.create(folder, with_pip=True)
    python = [*loader, str(folder / "bin" / "python")]
    subprocess.run([*python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[tfx]"], check=True)
    return python


def run_pipeline(python, folder, weights, **changes):
    """The status of the pipeline, and the last lines that it wrote."""
    command = [*python, str(PIPELINE), *pipeline_arguments(folder, weights, changes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return done.returncode, done.stdout.splitlines()[-4:]


@pytest.mark.slow
def test_the_pipeline_pushes_good_models_alone(tfx_python, weights, config, tmp_path):
    held_out = list(reviews(150, 1))
    write_data(tmp_path / "data", reviews(400, 0), held_out)
    status, lines = run_pipeline(tfx_python, tmp_path, weights, min_accuracy=0.9)
    (pushed,) = (tmp_path / "models" / "bert").iterdir()
    assert status == 0 and lines[-1] == f"pushed: {pushed}"

    texts, labels = map(np.array, zip(*held_out, strict=True))
    # Neither TFX nor kbert.
    answers, *_ = saved_model.outputs_in_new_process({"text": texts.tolist()}, pushed)
    right = answers["probabilities"].argmax(axis=1) == labels
    assert lines[0] == f"all: accuracy {right.mean():.4f} of 150 examples"
    for label in (0, 1):
        mine = right[labels == label]
        wanted = f"label {label}: accuracy {mine.mean():.4f} of {len(mine)} examples"
        assert lines[1 + label] == wanted

    (folder,) = (tmp_path / "root" / "Trainer" / "model_run").glob("*/kbert")
    found = kbert.Predictor.from_pretrained(folder, backend="keras").classify(texts.tolist())
    wanted = [[row["scores"][name] for name in config["label_names"]] for row in found]
    np.testing.assert_allclose(answers["probabilities"], wanted, atol=1e-5)

    root = tmp_path / "root" / "Transform" / "transformed_examples"
    (examples,) = root.glob("*/Split-eval")
    (batch,) = bert_module.examples_dataset([f"{examples}/*"], config).batch(200)
    assert sorted(text.decode() for text in batch["text"].numpy()) == sorted(texts)
    tokenizer = kbert.BertTokenizer.from_pretrained(weights)
    for name, value in tokenizer(batch["text"], max_length=20).items():
        np.testing.assert_array_equal(batch[name], value)

    worse = {"train_steps": 1, "min_accuracy": 0}  # than the model that was pushed
    status, lines = run_pipeline(tfx_python, tmp_path, weights, **worse)
    assert status == 1 and lines[-1].startswith("not pushed: ")
    assert list((tmp_path / "models" / "bert").iterdir()) == [pushed]

    bad = {"train_steps": 1, "min_accuracy": 0.9, "root": tmp_path / "another"}
    bad["serving"] = tmp_path / "models" / "another"
    status, lines = run_pipeline(tfx_python, tmp_path, weights, **bad)
    assert status == 1 and lines[-1].startswith("not pushed: ")
    assert not bad["serving"].exists()
