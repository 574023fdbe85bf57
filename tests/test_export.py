"""SavedModels against the Predictor: every method, text of every kind, another process."""

import concurrent.futures
import json
import resource
import shutil
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from exports import ALIKE, BERT, KINDS, OPS_FILE, WORDS, kinds, ops_of, some_words, texts_of
from marks import slow

import kbert
from kbert.errors import UserError
from kbert.serving import saved_model
from kbert.serving.endpoints import endpoints
from kbert.serving.export import export, export_tf_hub
from kbert.serving.signatures import INTERNAL, MAX_BATCH_TEXTS, signatures
from kbert.serving.warmup import write_warmup
from kbert.settings import EXPORT_METHODS, TextLimits
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab


@pytest.fixture(scope="module")
def methods(folders):
    """Function from a kind to its Endpoint and the signatures, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            method = saved_model.load_endpoint(folders[kind], KINDS[kind][3])
            method.limits = TextLimits(max_windows=1 << 13)  # they have at most 16 tokens
            made[kind] = method, signatures(method)
        return made[kind]

    return of


def same(found, wanted):
    """Whether answers are equal; numbers up to the order of sums, which depends on the threads."""
    return saved_model.largest_difference(found, wanted) < 1e-6


def tensors(texts):
    return {name: tf.constant(rows) for name, rows in texts.items()}


def arrays(answers):
    return {name: value.numpy() for name, value in answers.items()}


@pytest.mark.parametrize(
    "kind", ["fill_mask", *slow(*(kind for kind in KINDS if kind != "fill_mask"))]
)
def test_an_export_is_a_folder_of_weights(kind, exported):
    base, method = exported(kind)
    folder = base / "7"
    read = saved_model.load_exported(folder)
    assert type(read) is type(method) and read.texts == method.texts
    assert read.max_seq_length == method.max_seq_length
    texts = texts_of(method, 9)
    found = arrays(signatures(read)["serving_default"](**tensors(texts)))
    assert saved_model.largest_difference(found, method.reference_outputs(**texts)) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an export that embeds has no pooler
        model = type(method.model).from_pretrained(folder)
    for name, weight in model.named_weights().items():
        if "pooler" not in name:
            assert (weight.numpy() == method.model.named_weights()[name].numpy()).all(), name


@pytest.mark.parametrize("count", [1, 37])
@pytest.mark.parametrize("kind", kinds())
def test_answers_are_those_of_the_predictor(methods, kind, count):
    """float32, other kernels and padding: 1e-5, and the same words, labels and offsets."""
    method, functions = methods(kind)
    texts = texts_of(method, count)
    found = arrays(functions["serving_default"](**tensors(texts)))
    wanted = method.reference_outputs(**texts)
    assert found.keys() == method.output_spec.keys() >= wanted.keys()
    assert len(found) == len(wanted) or kind == "choose"
    assert saved_model.largest_difference(found, wanted) < 1e-5
    assert all(len(value) == count for value in found.values())


@pytest.mark.parametrize("texts", [[""], ["", "  "], ["the cat", ""]])
@pytest.mark.parametrize("kind", kinds("fill_mask"))
def test_empty_texts(methods, kind, texts):
    method, functions = methods(kind)
    texts = {name: texts for name in method.texts}
    if kind == "choose":
        texts["choices"] = [[text, "cat"] for text in texts["text"]]
    found = arrays(functions["serving_default"](**tensors(texts)))
    assert saved_model.largest_difference(found, method.reference_outputs(**texts)) < 1e-5


def test_differences_are_seen():
    wanted = {"a": [1.0, 2.0], "b": ["x"]}
    difference = saved_model.largest_difference
    assert difference({"a": np.array([1.0, 2.002]), "b": np.array([b"x"], object)}, wanted) == (
        pytest.approx(1e-3, rel=1e-3)
    )
    for other in ({"a": [1.0, np.nan]}, {"a": [1.0]}, {"b": np.array([b"y"], object)}):
        found = {"a": np.array([1.0, 2.0]), "b": np.array([b"x"], object), **other}
        assert difference(found, wanted) == np.inf


def test_the_methods_of_the_program_are_those_there_are():
    assert set(EXPORT_METHODS) == set(endpoints())


@pytest.mark.parametrize("kind", ["entities", "answer_or_none", *slow("tags", "answer")])
def test_long_texts_are_read_in_windows(methods, kind):
    """Many texts of many lengths, so that every border of a window comes up."""
    method, functions = methods(kind)
    rng = np.random.default_rng(0)
    contexts = [some_words(rng, 1, 80) for _ in range(150)] + [some_words(rng, 2000, 2001)]
    texts = {name: contexts for name in method.texts}
    if "question" in texts:
        texts["question"] = [some_words(rng, 1, 9) for _ in contexts]
    found = arrays(functions["serving_default"](**tensors(texts)))
    assert saved_model.largest_difference(found, method.reference_outputs(**texts)) < 1e-5
    if kind == "answer_or_none":
        assert {answer == b"" for answer in found["answer"]} == {True, False}
    if kind == "entities":
        assert found["count"].max() > 3 and {b"X", b"Y", b""} == set(found["label"].ravel())


@pytest.mark.parametrize("kind", kinds())
def test_no_texts_give_no_answers(methods, kind):
    method, functions = methods(kind)
    empty = {n: tf.zeros([0, 2][:a], tf.string) for n, a in method.texts.items()}
    for value in functions["serving_default"](**empty).values():
        assert value.shape[0] == 0


@pytest.mark.parametrize("kind", kinds())
def test_bytes_that_are_not_utf8_are_dropped(methods, kind):
    method, functions = methods(kind)
    mask = b" [MASK]" if kind == "fill_mask" else b""
    bad, good = (
        {n: tf.constant([[t, t]] if a == 2 else [t]) for n, a in method.texts.items()}
        for t in (b"the cat\xff\xfe sat" + mask, b"the cat sat" + mask)
    )
    bad, good = (arrays(functions["serving_default"](**texts)) for texts in (bad, good))
    for name in good:
        if good[name].dtype.kind == "f":
            np.testing.assert_array_equal(bad[name], good[name])


@pytest.mark.parametrize("kind", ["classify", "fill_mask"])
def test_special_tokens_in_text_are_text(methods, kind):
    method, _ = methods(kind)
    reading = {"tokenizer": method.mask_tokenizer} if kind == "fill_mask" else {}
    ids = method.encode(tf.constant(["the [SEP] cat [CLS] [PAD] [MASK]"]), **reading)["input_ids"]
    ids = ids.numpy()[0].tolist()
    assert [ids.count(i) for i in range(5)] == [0, ids.count(1), 1, 1, int(kind == "fill_mask")]


@pytest.mark.parametrize("kind", kinds())
def test_examples_and_ids_give_the_same_answers(methods, kind):
    method, functions = methods(kind)
    texts = {name: rows[-4:-1] for name, rows in texts_of(method, 20).items()}
    wanted = arrays(functions["serving_default"](**tensors(texts)))
    serialized = []
    for i in range(3):
        example = tf.train.Example()
        for name, rows in texts.items():
            values = rows[i] if isinstance(rows[i], list) else [rows[i]]
            example.features.feature[name].bytes_list.value.extend(v.encode() for v in values)
        serialized.append(example.SerializeToString())
    found = arrays(functions["from_examples"](inputs=tf.constant(serialized)))
    assert found.keys() == wanted.keys() and same(found, wanted)
    for name, keys in (("classify", {"classes", "scores"}), ("regress", {"outputs"})):
        if name in functions:
            assert functions[name](inputs=tf.constant(serialized)).keys() == keys
    if kind in ("classify", "multilabel"):
        found = functions["classify"](inputs=tf.constant(serialized))
        np.testing.assert_allclose(found["scores"], wanted["probabilities"], atol=1e-6)
        assert found["classes"].numpy()[0].tolist() == [b"no", b"yes", b"perhaps"]
    if kind == "regress":
        found = functions["regress"](inputs=tf.constant(serialized))
        np.testing.assert_allclose(found["outputs"], wanted["score"], atol=1e-6)
    if kind not in ("entities", "tags", "answer", "answer_or_none", "choose"):
        reading = {"tokenizer": method.mask_tokenizer} if kind == "fill_mask" else {}
        features = method.encode(*tensors(texts).values(), **reading)
        found = arrays(functions["from_ids"](**features))
        assert same(found, wanted)


@pytest.mark.parametrize("kind", kinds())
def test_texts_over_a_limit_are_rejected(methods, kind):
    method, functions = methods(kind)
    check_limits(method, functions, lambda name, texts: functions[name](**tensors(texts)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_exports_reject_texts_over_a_limit(exported, kind):
    """In eager mode, and in a session, as TensorFlow Serving runs them."""
    base, method = exported(kind)
    functions = tf.saved_model.load(str(base / "7")).signatures
    check_limits(method, functions, lambda name, texts: functions[name](**tensors(texts)))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(base / "7"))

        def call(name, texts):
            definition = meta.signature_def[name]
            fetched = [info.name for info in definition.outputs.values()]
            session.run(fetched, {definition.inputs[n].name: x for n, x in texts.items()})

        check_limits(method, meta.signature_def, call)


def check_limits(method, names, call):
    """Checks all signatures of texts or examples, with texts at a limit and one byte over it."""
    long = b" " * (16 * method.limits.max_text_tokens)
    rows = {name: [[long] * 2] if axes == 2 else [long] for name, axes in method.texts.items()}
    whole, example = {n: np.array(x, object) for n, x in rows.items()}, tf.train.Example()
    for text, array in whole.items():
        example.features.feature[text].bytes_list.value.extend([*array.ravel()[1:], long + b" "])
    message = "is longer, at 16 bytes per token, than --max_text_tokens=65536"
    for name in set(names) & {"serving_default", "internal_encode"}:
        call(name, whole)
        for text, array in whole.items():
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"{text} {message}"):
                call(name, {**whole, text: array + b" "})
    for name in set(names) & {"from_examples", "classify", "regress"}:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(name, {"inputs": np.array([example.SerializeToString()], object)})


def test_examples_must_have_as_many_choices(methods):
    _, functions = methods("choose")
    serialized = []
    for count in (2, 3):
        example = tf.train.Example()
        example.features.feature["text"].bytes_list.value.append(b"cat")
        example.features.feature["choices"].bytes_list.value.extend([b"dog"] * count)
        serialized.append(example.SerializeToString())
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="must have the same number of choices"
    ):
        functions["from_examples"](inputs=tf.constant(serialized))


ALONE = """
import json, pathlib, sys
import numpy as np, tensorflow as tf, tensorflow_text
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.iterdir()):
    texts = json.loads((path / "texts.json").read_text())
    model = tf.saved_model.load(str(path / "1"))
    found = model.signatures["serving_default"](**{n: tf.constant(t) for n, t in texts.items()})
    np.savez(path / "found.npz", **{n: v.numpy() for n, v in found.items()})
print(sorted(m for m in sys.modules if m.split(".")[0] == "kbert"))
"""


@pytest.mark.parametrize("kind", kinds())
def test_the_ops_of_exports_are_known(kind, exported):
    assert ops_of(exported(kind)[0]) <= set(OPS_FILE.read_text().split())


@pytest.mark.slow
def test_exports_answer_alone(exported, tmp_path):
    """In another process, moved, with the sources gone, without kbert."""
    wanted = {}
    for kind in sorted(KINDS.keys() - ALIKE):
        base, method = exported(kind)
        shutil.copytree(base / "7", tmp_path / "there" / kind / "1")
        texts = texts_of(method, 11)
        (tmp_path / "there" / kind / "texts.json").write_text(json.dumps(texts))
        wanted[kind] = method.reference_outputs(**texts)
    command = [sys.executable, "-c", ALONE, str(tmp_path / "there")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr[-2000:]
    for kind in wanted:
        with np.load(tmp_path / "there" / kind / "found.npz", allow_pickle=True) as found:
            assert saved_model.largest_difference(dict(found), wanted[kind]) < 1e-5, kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["choose", *slow("entities")])
def test_requests_share_batches_in_the_graph(kind, methods, tmp_path):
    """A full batch is computed at once, however late its last row comes."""
    method, _ = methods(kind)
    saved_model.save_endpoint(method, tmp_path / "1", batch_timeout_ms=60_000)
    assert ops_of(tmp_path / "1") <= set(OPS_FILE.read_text().split())
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    answer = loaded.signatures["serving_default"]
    texts = {name: rows[:MAX_BATCH_TEXTS] for name, rows in texts_of(method, 40).items()}
    rows = [
        {name: values[i : i + 1] for name, values in texts.items()} for i in range(MAX_BATCH_TEXTS)
    ]
    with concurrent.futures.ThreadPoolExecutor(MAX_BATCH_TEXTS) as pool:
        found = list(pool.map(lambda row: arrays(answer(**tensors(row))), rows))
    for name, values in method.reference_outputs(**texts).items():
        together = np.concatenate([row[name] for row in found])  # of the shared batch's columns
        wanted = {name: np.asarray(values)}
        assert saved_model.largest_difference({name: together}, wanted) < 1e-5, name


def test_a_saved_model_says_what_it_is_and_has_its_variables(methods, tmp_path):
    method, _ = methods("classify")
    saved_model.save_endpoint(method, tmp_path / "1")
    metadata = json.loads((tmp_path / "1" / "assets.extra" / "kbert.json").read_text())
    assert metadata["method"] == "classify" and metadata["labels"] == ["no", "yes", "perhaps"]
    assert metadata["inputs"] == ["text"] and metadata["max_seq_length"] == 16
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    assert len(loaded.variables) == len(method.model.variables)
    function = loaded.signatures["from_ids"]
    assert {spec.name for spec in function.structured_input_signature[1].values()} == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
    }


@pytest.mark.parametrize("method", ["tag", "answer", "choose"])
def test_a_head_that_is_not_there(folders, method):
    with pytest.raises(UserError, match=r"has no .*_classifier, which BertFor"):
        saved_model.load_endpoint(folders["fill_mask"], method)


def test_a_pooler_that_is_not_there(tmp_path):
    """What it would give is noise."""
    kbert.BertForMaskedLM(kbert.BertConfig(**BERT)).save_pretrained(tmp_path)
    write_vocab([*SPECIAL_TOKENS, *WORDS], tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="has no pooler, which"):
        saved_model.load_endpoint(tmp_path, "encode")
    with pytest.raises(UserError, match="has no pooler, which"):
        export_tf_hub(tmp_path, tmp_path / "hub")


def test_a_table_with_more_entries_than_the_vocabulary(tmp_path):
    keras.utils.set_random_seed(0)
    config = kbert.BertConfig(**{**BERT, "vocab_size": 40})
    kbert.BertForMaskedLM(config).save_pretrained(tmp_path)
    write_vocab([*SPECIAL_TOKENS, *WORDS], tmp_path / "vocab.txt")
    method = saved_model.load_endpoint(tmp_path)
    method.top_k = 26
    texts = {"text": ["the [MASK] sat"]}
    found = arrays(method.from_texts(**tensors(texts)))
    assert saved_model.largest_difference(found, method.reference_outputs(**texts)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("classify", {"max_seq_length": 4}, "max_seq_length must be 5 to 32"),
        ("classify", {"max_seq_length": 33}, "max_seq_length must be 5 to 32.*got 33"),
        ("encode", {"name": "encode", "max_seq_length": 33}, "max_seq_length must be 5 to 32"),
        ("answer", {"max_seq_length": 9}, "must be at least 10; got 9"),
        ("fill_mask", {"takes_pairs": True}, "--takes_pairs requires a model that classifies"),
    ],
)
def test_bad_arguments(folders, kind, arguments, message):
    with pytest.raises(UserError, match=message):
        saved_model.load_endpoint(folders[kind], **arguments)


@pytest.mark.smoke
def test_the_program(folders, tmp_path):
    target, lines = tmp_path / "models" / "bert" / "1", []
    export(folders["pair"], target, report=lines.append)
    text = "\n".join(lines)
    assert "classify, 2 layers, width 24, 16 tokens" in text
    assert "checked in a process without kbert: 5 texts" in text
    assert "serving_default: text (B), text_pair (B) string" in text
    assert text.endswith(f"--model_name=bert --model_base_path={target.parent}")
    assert (target / "saved_model.pb").exists()
    with pytest.raises(
        UserError, match=r"exists and is not empty\. Use the folder of the next version"
    ):
        export(folders["pair"], target)


def test_an_export_that_answers_otherwise_is_not_written(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(
        saved_model,
        "outputs_in_new_process",
        lambda *_: [{n: [] for n in ("label", "score", "probabilities")}],
    )
    with pytest.raises(
        UserError, match=r"the outputs of the SavedModel for 5 texts differ from kbert\.predict"
    ):
        export(folders["classify"], tmp_path / "1", report=lambda line: None)
    assert not any(tmp_path.iterdir())


def test_a_damaged_export_is_refused(methods, tmp_path):
    saved_model.save_endpoint(methods("classify")[0], tmp_path / "1")
    messages = {
        "assets.extra/vocab.txt": r"vocab.txt is damaged: its checksum differs. Export the model",
        "assets.extra/config.json": r"config.json is damaged: its checksum differs",
        "assets.extra/task.json": r"task.json is damaged: No such file",
        "assets.extra/kbert.json": r"kbert.json is damaged: its checksum differs",
        "saved_model.pb": r"saved_model.pb is damaged: its checksum differs",
    }
    for name, message in messages.items():
        path = tmp_path / "1" / name
        data = path.read_bytes()
        if "No such" in message:
            path.unlink()
        else:
            harmed = bytearray(data)
            word = next((word for word in (b"cat", b"classify") if word in data), None)
            harmed[data.index(word) if word else len(data) // 2] ^= 1
            path.write_bytes(harmed)
        with pytest.raises(UserError, match=message):
            saved_model.load_exported(tmp_path / "1")
        with pytest.raises(UserError, match=message):
            kbert.BertForSequenceClassification.from_pretrained(tmp_path / "1")
        path.write_bytes(data)
    assert saved_model.load_exported(tmp_path / "1").name == "classify"


def test_what_tensorflow_cannot_write_is_one_line(folders, tmp_path):
    """No file may grow over 2,000 bytes, as on a disk that is full."""
    target, limits = tmp_path / "1", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"cannot write {target}: .*File too large\. Fix that"):
            export(folders["classify"], target, report=lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind",
    [
        "choose",
        *slow("pair"),
        *slow("regress"),
    ],
)
def test_warm_up_requests_are_answered(methods, kind, tmp_path):
    """As TensorFlow Serving reads them: each names a signature, and its inputs fit."""
    logs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    method, functions = methods(kind)
    count = write_warmup(tmp_path, functions, saved_model.samples(method), "bert")
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    found = [logs.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    public = functions.keys() - set(INTERNAL)
    assert len(found) == count == 2 * len(public)
    sizes = {}
    for log in found:
        request = getattr(log, log.WhichOneof("log_type")).request
        assert request.model_spec.name == "bert"
        if log.WhichOneof("log_type") == "predict_log":
            inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        else:
            examples = request.input.example_list.examples
            inputs = {"inputs": [e.SerializeToString() for e in examples]}
        name = request.model_spec.signature_name
        answers = functions[name](**{n: tf.constant(x) for n, x in inputs.items()})
        sizes.setdefault(name, []).append(len(next(iter(answers.values()))))
    assert sizes == {name: [1, 8] for name in public}
