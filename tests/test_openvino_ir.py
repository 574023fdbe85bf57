"""Models for OpenVINO, computed by it: the numbers are those of the method."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from exports import BERT, KINDS, WORDS
from marks import slow
from warm_python import PYTHON

import kbert
from kbert.errors import UserError
from kbert.serving import export as export_module
from kbert.serving import openvino_ir, saved_model
from kbert.serving.endpoints import endpoints
from kbert.serving.export import export_openvino
from kbert.tasks.registry import tasks
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

pytest.importorskip("openvino")


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
        shape = (shape[0], 4, shape[1])
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


@pytest.mark.parametrize(
    "kind", ["answer", *slow(*(k for k in KINDS if k not in ("answer", "entities")))]
)
def test_numbers_are_those_of_the_method(kind, methods, tmp_path):
    """float32, other kernels: 1e-5, at other sizes than the model was converted with."""
    method = methods(kind)
    (tmp_path / "here").mkdir()
    metadata = openvino_ir.save_openvino(method, tmp_path / "here")
    assert metadata["largest_difference"] < 1e-5
    (tmp_path / "here").rename(tmp_path / "there")
    compute = openvino_ir.load_model(tmp_path / "there")
    for shape in [(1, 5), (3, 7), (6, method.max_seq_length), (2, 1)]:
        features = features_of(method, *shape)
        found, wanted = compute(features), arrays(method.forward(features))
        assert found.keys() == metadata["outputs"].keys() == wanted.keys()
        assert saved_model.largest_difference(found, wanted) < 1e-5
        sizes = {"B": shape[0], "C": 4, "L": shape[1], "M": min(shape[1], 16)}
        for ports, values in (("inputs", features), ("outputs", found)):
            for port, value in values.items():
                expected = [sizes.get(size, size) for size in metadata[ports][port]["shape"]]
                assert list(value.shape) == expected
                assert value.dtype == metadata[ports][port]["dtype"]


def test_float16(wide, tmp_path):
    """Smaller, and near: float16 is off by 1/2048 of itself."""
    lines, sizes, metadata = [], [], {}
    for target, how in ((tmp_path / "full", None), (tmp_path / "less", "float16")):
        export_openvino(wide, target, max_seq_length=16, quantize=how, report=lines.append)
        sizes.append(sum(path.stat().st_size for path in target.glob("model.[!j]*")))
        metadata[how] = json.loads((target / "model.json").read_text())
    assert sizes[1] < 0.8 * sizes[0]
    assert metadata[None]["largest_difference"] < 1e-5
    assert 1e-5 < metadata["float16"]["largest_difference"] < 0.005
    assert metadata["float16"]["weights"] == "float16"
    assert "checked in its runtime: 5 texts in float16, " in "\n".join(lines)


# As in docs/serving.md.
ALONE = """
import json, sys
import numpy as np
import openvino
import tokenizers

folder, texts, pairs = sys.argv[1], *map(json.loads, sys.argv[2:])
about = json.load(open(f"{folder}/model.json"))
tokenizer = tokenizers.BertWordPieceTokenizer(f"{folder}/vocab.txt", lowercase=True)
tokenizer.enable_truncation(about["max_seq_length"])
tokenizer.enable_padding()
encoded = tokenizer.encode_batch(list(zip(texts, pairs)))
features = {
    "input_ids": np.array([e.ids for e in encoded], "int32"),
    "attention_mask": np.array([e.attention_mask for e in encoded], "int32"),
    "token_type_ids": np.array([e.type_ids for e in encoded], "int32"),
}
exact = {"INFERENCE_PRECISION_HINT": "f32"}
model = openvino.compile_model(f"{folder}/{about['file']}", "CPU", exact)
logits = model(features)["logits"]
alone = not {"kbert", "tensorflow", "keras"} & sys.modules.keys()
print(json.dumps([alone, logits.tolist()]), flush=True)
"""


def test_a_process_without_kbert(methods, tmp_path):
    """That has no TensorFlow either, and takes tokens from the tokenizers library."""
    metadata = openvino_ir.save_openvino(methods("pair"), tmp_path)
    assert metadata["labels"] == ["no", "yes", "perhaps"] and metadata["same_labels"] == 5
    texts = ["the cat", "running on a mat , unwanted", "dog " * 9, "a", "the mat ran !"]
    pairs = ["dog ran .", "sat", "the mat and the dog", "cat " * 5, "unwanted"]
    asked = [str(tmp_path), json.dumps(texts), json.dumps(pairs)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *asked], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone, logits = json.loads(done.stdout.splitlines()[-1])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = methods("pair").reference_outputs(texts, pairs)["probabilities"]
    assert alone and np.ptp(shares[:, 0]) > 0.01
    np.testing.assert_allclose(shares, wanted, atol=1e-5)


def test_the_program(folders, tmp_path):
    target, lines = tmp_path / "other" / "1", []
    export_openvino(folders["classify"], target, report=lines.append)
    text = "\n".join(lines)
    assert "classify, 2 layers, width 24, 16 tokens" in text
    assert "5 texts in float32, largest difference " in text
    assert ", same labels for 5 of 5" in text
    assert "model.xml: input_ids, attention_mask, token_type_ids (B, L) int32" in text
    assert {
        "vocab.txt",
        "tokenizer_config.json",
        "config.json",
        "model.json",
        "task.json",
        "model.xml",
    } <= {path.name for path in target.iterdir()}
    with pytest.raises(
        UserError, match=r"exists and is not empty\. Use the folder of the next version"
    ):
        export_openvino(folders["classify"], target)
    with pytest.raises(UserError, match=r"model\.xml is an OpenVINO model, a format for serving"):
        kbert.BertModel.from_pretrained(target)


@pytest.mark.parametrize(
    ("quantize", "wrong", "refused"),
    [
        (None, 0.1, "differ from kbert's model by 1.0e-01; at most 1e-05 is allowed"),
        (None, np.nan, "by inf; at most"),
        ("float16", np.nan, "by inf; any finite difference is allowed"),
        ("float16", np.inf, "by inf; any finite"),
        ("float16", 0.1, None),
    ],
)
def test_wrong_numbers(quantize, wrong, refused, folders, tmp_path, monkeypatch):
    """Of float32 they are refused; of what is quantized only those that are not finite."""
    load = openvino_ir.load_model

    def load_wrong(folder):
        compute = load(folder)
        return lambda features: {n: np.array(x) + wrong for n, x in compute(features).items()}

    monkeypatch.setattr(openvino_ir, "load_model", load_wrong)
    target, lines = tmp_path / "to" / "1", []
    arguments = {"quantize": quantize, "report": lines.append}
    if refused:
        with pytest.raises(UserError, match=refused):
            export_openvino(folders["regress"], target, **arguments)
        assert not target.parent.exists()
    else:
        export_openvino(folders["regress"], target, **arguments)
        assert (target / "model.bin").exists()


def test_quantizations_that_are_not_there(tmp_path):
    with pytest.raises(
        UserError,
        match="--quantize=int8 is not available with --format=openvino; use --quantize=float16",
    ):
        export_openvino("gone", tmp_path / "to", quantize="int8")


def test_packages_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda package: None)
    message = r"--format=openvino requires OpenVINO: pip install 'kbert\[openvino\]'"
    with pytest.raises(UserError, match=message):
        export_openvino("gone", tmp_path / "to")


def test_pairs_where_they_mean_nothing(folders, tmp_path):
    with pytest.raises(
        UserError, match="--takes_pairs requires a model that classifies; embed takes text"
    ):
        export_openvino(folders["embed"], tmp_path / "to", "embed", takes_pairs=True)
    assert not any(tmp_path.iterdir())


def test_a_model_that_is_too_large(methods, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_ir, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(UserError, match=r"GB; --format=openvino supports at most 0.00 GB\. Use"):
        openvino_ir.save_openvino(methods("embed"), tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--quantize=float16"],
            "--quantize=float16 is not available with --format=serving; use --quantize=int8.",
        ),
        (
            ["--format=tf_hub", "--eval_file=a"],
            "--method, --takes_pairs and --eval_file are not allowed",
        ),
        (
            ["--format=openvino", "--batch_timeout_ms=5"],
            "--batch_timeout_ms requires --format=serving",
        ),
        (["--label_column=1"], "--label_column requires --eval_file."),
    ],
)
def test_flags_that_do_not_fit(flags, message, folders, tmp_path):
    command = [PYTHON, "-m", "kbert.export", f"--model={folders['embed']}"]
    command += [f"--output_dir={tmp_path / 'to'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f"error: {message}" in done.stderr
    assert not any(tmp_path.iterdir())


def test_there_is_a_line_for_every_output():
    of_tasks = [task.endpoint for task in tasks().values()]
    assert all(kind.forward_spec for kind in [*endpoints().values(), *of_tasks])
