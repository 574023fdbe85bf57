"""Models for other runtimes, computed by these: the numbers are those of the method."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from exports import BERT, KINDS, WORDS, kinds
from warm_python import PYTHON

import kbert
from kbert.errors import UserError
from kbert.model.inference_ops import plain_ops
from kbert.serving import conversions, runtimes, saved_model
from kbert.serving.endpoints import endpoints
from kbert.serving.export import export_to_runtime
from kbert.settings import EXPORT_RUNTIMES, QUANTIZATIONS
from kbert.tasks.registry import tasks
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

QUANTIZED = [(name, q) for name, r in runtimes.RUNTIMES.items() for q in r.quantizations]


def needed(name):
    """The Runtime of a name; skips where it is not installed."""
    runtime = runtimes.RUNTIMES[name]
    for package in runtime.packages:
        pytest.importorskip(package)
    return runtime


@pytest.fixture(scope="module")
def methods(folders):
    """Function from a kind to its Endpoint, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = saved_model.load_endpoint(folders[kind], KINDS[kind][3])
        return made[kind]

    return of


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A classifier whose matrices are large enough to be quantized."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 1}
    labels = {"num_labels": 3, "label_names": ("no", "yes", "perhaps"), "initializer_range": 0.1}
    keras.utils.set_random_seed(0)
    config = kbert.BertConfig(**{**BERT, **sizes, **labels})
    kbert.BertForSequenceClassification(config).save_pretrained(folder)
    write_vocab([*SPECIAL_TOKENS, *WORDS], folder / "vocab.txt")
    kbert.BertTokenizer(folder / "vocab.txt").save_pretrained(folder)
    return folder


def features_of(method, *shape):
    """Random features, the rows of different lengths, int32; a few [MASK] among the ids."""
    rng = np.random.default_rng(len(shape) + shape[-1])
    if method.name == "choose":
        shape = (shape[0], 1 if shape[0] == 1 else 4, shape[1])
    lengths = rng.integers(1, shape[-1] + 1, shape[:-1])
    lengths.flat[0] = shape[-1]
    mask = np.arange(shape[-1]) < lengths[..., None]
    found = {
        "input_ids": rng.integers(4, method.tokenizer.vocab_size, shape) * mask,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, shape) * mask,
    }
    return {name: x.astype(np.int32) for name, x in found.items()}


def arrays(tensors):
    return {name: x.numpy() for name, x in tensors.items()}


@pytest.mark.parametrize("kind", kinds("entities"))
@pytest.mark.parametrize("name", EXPORT_RUNTIMES)
def test_numbers_are_those_of_the_method(name, kind, methods, tmp_path):
    """float32, other kernels: 1e-5, at other sizes than the model was converted with."""
    runtime, method = needed(name), methods(kind)
    (tmp_path / "here").mkdir()
    metadata = conversions.save_conversion(method, runtime, tmp_path / "here")
    assert metadata["largest_difference"] < 1e-5
    (tmp_path / "here").rename(tmp_path / "there")
    compute = runtime.load(tmp_path / "there")
    L = method.max_seq_length
    for shape in [(1, L)] if runtime.fixed_sizes else [(1, 5), (3, 7), (6, L), (2, 1)]:
        features = features_of(method, *shape)
        found, wanted = compute(features), arrays(method.forward(features))
        assert found.keys() == metadata["outputs"].keys() == wanted.keys()
        assert saved_model.largest_difference(found, wanted) < 1e-5
        sizes = {
            "B": shape[0],
            "C": 1 if shape[0] == 1 else 4,
            "L": shape[1],
            "M": min(shape[1], 16),
        }
        for ports, values in (("inputs", features), ("outputs", found)):
            for port, value in values.items():
                expected = [sizes.get(size, size) for size in metadata[ports][port]["shape"]]
                assert list(value.shape) == expected
                assert value.dtype == metadata[ports][port]["dtype"]
    if name == "litert":
        assert b"Flex" not in (tmp_path / "there" / runtime.file).read_bytes()


def test_sizes_of_onnx_models_have_names(methods, tmp_path):
    needed("onnx")
    import onnxruntime

    runtime = runtimes.RUNTIMES["onnx"]
    runtime.write(methods("tags"), conversions.shapes(methods("tags"), runtime), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    ports = [*session.get_inputs(), *session.get_outputs()]
    assert {port.name: port.shape for port in ports} == {
        **{n: ["B", "L"] for n in ("input_ids", "attention_mask", "token_type_ids")},
        "logits": ["B", "L", 3],
    }


@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
def test_plain_ops_compute_the_same(act, tmp_path):
    """And the model computes as ever after them."""
    keras.utils.set_random_seed(0)
    model = kbert.BertModel(kbert.BertConfig(**BERT, hidden_act=act))
    for weight in model.weights:
        if weight.name in ("gamma", "beta"):
            weight.assign(weight + keras.random.normal(weight.shape, seed=1))
    features = {"input_ids": np.array([[2, 7, 9, 3, 0]]), "attention_mask": [[1, 1, 1, 1, 0]]}
    features = {name: np.asarray(x, np.int32) for name, x in features.items()}
    wanted = model(features)["last_hidden_state"].numpy()
    with plain_ops():
        found = model(features)["last_hidden_state"].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(model(features)["last_hidden_state"], wanted)


@pytest.mark.parametrize(("name", "quantize"), QUANTIZED)
def test_quantized_models(name, quantize, wide, tmp_path):
    """Smaller, and near: int8 is off by 1/254 of what is largest, float16 by 1/2048 of itself."""
    needed(name)
    lines, sizes, metadata = [], [], {}
    for target, how in ((tmp_path / "full", None), (tmp_path / "less", quantize)):
        export_to_runtime(wide, target, name, max_seq_length=16, quantize=how, report=lines.append)
        sizes.append(sum(path.stat().st_size for path in target.glob("model.[!j]*")))
        metadata[how] = json.loads((target / "model.json").read_text())
    assert sizes[1] < 0.8 * sizes[0]
    assert metadata[None]["largest_difference"] < 1e-5
    assert 1e-5 < metadata[quantize]["largest_difference"] < (0.1 if quantize == "int8" else 0.005)
    assert metadata[quantize]["weights"] == quantize
    assert f"checked by its runtime: 5 samples in {quantize}, " in "\n".join(lines)


def test_calibrated_numbers_do_not_depend_on_the_batch(wide, tmp_path):
    """int8 with one range for all inputs; without calibration, a batch shares what it has."""
    runtime = needed("onnx")
    method = saved_model.load_endpoint(wide, max_seq_length=16)
    calibration = [features_of(method, 1, length) for length in (3, 5, 7, 11, 13, 16)]
    metadata = conversions.save_conversion(method, runtime, tmp_path, "int8", calibration)
    assert metadata["calibration_examples"] == 6
    assert 1e-5 < metadata["largest_difference"] < 0.1
    features, compute = features_of(method, 4, 16), runtime.load(tmp_path)
    together = compute(features)["logits"]
    for row in range(4):
        alone = compute({name: x[row : row + 1] for name, x in features.items()})["logits"]
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


# As in docs/serving.md, for each runtime.
ALONE = """
import json, sys
import numpy as np
import tokenizers

folder, name, texts, pairs = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
about = json.load(open(f"{folder}/model.json"))
tokenizer = tokenizers.BertWordPieceTokenizer(f"{folder}/vocab.txt", lowercase=True)
tokenizer.enable_truncation(about["max_seq_length"])
size = about["inputs"]["input_ids"]["shape"][1]
tokenizer.enable_padding(length=size if isinstance(size, int) else None)
encoded = tokenizer.encode_batch(list(zip(texts, pairs)))
features = {
    "input_ids": np.array([e.ids for e in encoded], "int32"),
    "attention_mask": np.array([e.attention_mask for e in encoded], "int32"),
    "token_type_ids": np.array([e.type_ids for e in encoded], "int32"),
}
path = f"{folder}/{about['file']}"
if name == "onnx":
    import onnxruntime
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], features)
elif name == "openvino":
    import openvino
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    logits = openvino.compile_model(path, "CPU", exact)(features)["logits"]
else:
    from ai_edge_litert.interpreter import Interpreter
    run = Interpreter(path).get_signature_runner()
    rows = [{n: x[i : i + 1] for n, x in features.items()} for i in range(len(encoded))]
    logits = np.concatenate([run(**row)["logits"] for row in rows])
alone = not {"kbert", "tensorflow", "keras"} & sys.modules.keys()
print(json.dumps([alone, logits.tolist()]), flush=True)
"""


@pytest.mark.parametrize("name", EXPORT_RUNTIMES)
def test_a_process_without_kbert(name, methods, tmp_path):
    """That has no TensorFlow either, and takes tokens from the tokenizers library."""
    runtime = needed(name)
    metadata = conversions.save_conversion(methods("pair"), runtime, tmp_path)
    assert metadata["labels"] == ["no", "yes", "perhaps"] and metadata["same_labels"] == 5
    texts = ["the cat", "running on a mat , unwanted", "dog " * 9, "a", "the mat ran !"]
    pairs = ["dog ran .", "sat", "the mat and the dog", "cat " * 5, "unwanted"]
    asked = [str(tmp_path), name, json.dumps(texts), json.dumps(pairs)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *asked], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone, logits = json.loads(done.stdout.splitlines()[-1])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = methods("pair").reference_outputs(texts, pairs)["probabilities"]
    assert alone and np.ptp(shares[:, 0]) > 0.01
    np.testing.assert_allclose(shares, wanted, atol=1e-5)


@pytest.mark.parametrize("name", EXPORT_RUNTIMES)
def test_the_program(name, folders, tmp_path):
    needed(name)
    target, lines = tmp_path / "other" / "1", []
    export_to_runtime(folders["classify"], target, name, report=lines.append)
    text, file = "\n".join(lines), runtimes.RUNTIMES[name].file
    shape = "1, 16" if name == "litert" else "B, L"
    assert "classify, 2 layers, width 24, 16 tokens" in text
    assert "5 samples in float32, largest difference " in text
    assert ", 5 of 5 labels the same" in text
    assert f"{file}: input_ids, attention_mask, token_type_ids ({shape}) int32" in text
    assert {
        "vocab.txt",
        "tokenizer_config.json",
        "config.json",
        "model.json",
        "task.json",
        file,
    } <= {path.name for path in target.iterdir()}
    with pytest.raises(UserError, match=r"exists and is not empty\. Name the next version"):
        export_to_runtime(folders["classify"], target, name)
    with pytest.raises(UserError, match=f"(?i){file} is an? {name} model, which is"):
        kbert.BertModel.from_pretrained(target)


@pytest.mark.parametrize(
    ("quantize", "wrong", "refused"),
    [
        (None, 0.1, "other numbers than kbert's model: off by 1.0e-01, allowed are 1e-05"),
        (None, np.nan, "off by inf"),
        ("float16", np.nan, "off by inf, allowed are inf"),
        ("float16", np.inf, "off by inf"),
        ("float16", 0.1, None),
    ],
)
def test_wrong_numbers(quantize, wrong, refused, folders, tmp_path, monkeypatch):
    """Of float32 they are refused; of what is quantized only those that are not finite."""
    needed("openvino")
    load = runtimes.OpenVINO.load

    def load_wrong(self, folder):
        compute = load(self, folder)
        return lambda features: {n: np.array(x) + wrong for n, x in compute(features).items()}

    monkeypatch.setattr(runtimes.OpenVINO, "load", load_wrong)
    target, lines = tmp_path / "to" / "1", []
    arguments = {"quantize": quantize, "report": lines.append}
    if refused:
        with pytest.raises(UserError, match=refused):
            export_to_runtime(folders["regress"], target, "openvino", **arguments)
        assert not any(target.parent.iterdir())
    else:
        export_to_runtime(folders["regress"], target, "openvino", **arguments)
        assert (target / "model.bin").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("openvino", "int8"), "--format=openvino has no --quantize=int8; it has float16"),
        (("onnx", "float16"), "--format=onnx has no --quantize=float16; it has int8"),
    ],
)
def test_quantizations_that_are_not_there(arguments, message):
    with pytest.raises(UserError, match=message):
        runtimes.find_runtime(*arguments)


@pytest.mark.parametrize("name", EXPORT_RUNTIMES)
def test_packages_that_are_not_there(name, monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda package: None)
    package = runtimes.RUNTIMES[name].packages[0]
    with pytest.raises(UserError, match=rf"={name} needs {package}: pip install 'kbert\[{name}\]'"):
        runtimes.find_runtime(name)


def test_pairs_where_they_mean_nothing(folders, tmp_path):
    needed("openvino")
    with pytest.raises(
        UserError, match="--takes_pairs is for models that classify; embed takes text"
    ):
        export_to_runtime(folders["embed"], tmp_path / "to", "openvino", "embed", takes_pairs=True)
    assert not any(tmp_path.iterdir())


def test_a_model_that_is_too_large(methods, tmp_path, monkeypatch):
    monkeypatch.setattr(conversions, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="does not fit --format=onnx, which holds 2 GB"):
        conversions.save_conversion(methods("embed"), runtimes.RUNTIMES["onnx"], tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize=float16"], "--format=serving has no --quantize=float16; it has int8."),
        (["--calibration_file=a"], "--calibration_file is for --format=onnx; got serving."),
        (
            ["--format=tf_hub", "--eval_file=a"],
            "--method, --takes_pairs and --eval_file are not for",
        ),
        (["--format=onnx", "--batch_timeout_ms=5"], "--batch_timeout_ms is for --format=serving"),
        (["--label_column=1"], "--label_column is for --eval_file or --calibration_file."),
    ],
)
def test_flags_that_do_not_fit(flags, message, folders, tmp_path):
    command = [PYTHON, "-m", "kbert.export", f"--model={folders['embed']}"]
    command += [f"--output_dir={tmp_path / 'to'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f"error: {message}" in done.stderr
    assert not any(tmp_path.iterdir())


def test_there_is_a_line_for_everything():
    of_tasks = [task.endpoint for task in tasks().values()]
    assert all(kind.forward_spec for kind in [*endpoints().values(), *of_tasks])
    assert tuple(runtimes.RUNTIMES) == EXPORT_RUNTIMES
    assert {quantize for _, quantize in QUANTIZED} == set(QUANTIZATIONS)
