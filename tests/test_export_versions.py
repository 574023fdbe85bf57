"""Exports under the versions of TensorFlow that TensorFlow Serving 2.19 and 2.20 are built of.

    python -m pytest -m slow tests/test_export_versions.py

makes two virtual environments, of 2 GB each, in a temporary folder; some minutes.
"""

import json
import shutil
import subprocess
import venv

import keras
import numpy as np
import pytest
import tensorflow as tf
from exports import OPS_FILE, ops_of

import kbert
from kbert.serving import saved_model
from kbert.serving.export import export_tf_hub
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", ".", "house", "##s"]
BERT = {
    **{"vocab_size": 16, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 20, "max_position_embeddings": 80, "initializer_range": 0.5},
}
METHODS = {
    "classify": "BertForSequenceClassification",
    "multilabel": "BertForSequenceClassification",
    "regress": "BertForSequenceClassification",
    "tag": "BertForTokenClassification",
    "answer": "BertForQuestionAnswering",
    "choose": "BertForMultipleChoice",
    "fill_mask": "BertForPreTraining",
    "next_sentence": "BertForPreTraining",
    "embed": "BertForPreTraining",
    "encode": "BertForPreTraining",
}
FIELDS = {
    "classify": {"num_labels": 3},
    "multilabel": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "regress": {"num_labels": 1},
    "tag": {"num_labels": 3, "label_names": ("O", "B-X", "I-X")},
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Folder with a SavedModel of each method and texts for it, and what they should answer."""
    root, wanted = tmp_path_factory.mktemp("exports"), {}
    write_vocab([*SPECIAL_TOKENS, *WORDS], root / "vocab.txt")
    tokenizer = kbert.BertTokenizer(root / "vocab.txt")
    for name, model_class in METHODS.items():
        keras.utils.set_random_seed(0)
        weights = root / "weights" / name
        config = kbert.BertConfig(**BERT, **FIELDS.get(name, {}))
        getattr(kbert, model_class)(config).save_pretrained(weights)
        tokenizer.save_pretrained(weights)
        kind = None if name in ("multilabel", "regress") else name
        method = saved_model.load_endpoint(weights, kind)
        target = root / "models" / name
        saved_model.save_endpoint(method, target / "1", batch_timeout_ms=name == "classify")
        texts = saved_model.samples(method)
        (target / "texts.json").write_text(json.dumps(texts))
        wanted[name] = method.reference_outputs(**texts)
    method = saved_model.load_endpoint(root / "weights" / "classify")
    saved_model.quantize_int8(method)
    target = root / "models" / "int8"
    functions = saved_model.save_endpoint(method, target / "1")
    shutil.copy(root / "models" / "classify" / "texts.json", target)
    texts = json.loads((target / "texts.json").read_text())
    texts = {name: tf.constant(values) for name, values in texts.items()}
    wanted["int8"] = {n: v.numpy() for n, v in functions["serving_default"](**texts).items()}
    export_tf_hub(root / "weights" / "encode", root / "hub", 16, lambda line: None)
    return root, wanted


@pytest.mark.slow
def test_the_list_of_ops_is_that_of_the_exports(exports):
    root, _ = exports
    assert sorted(ops_of(root)) == OPS_FILE.read_text().split()


ALONE = """
import json, pathlib, sys
import numpy as np, tensorflow as tf, tensorflow_text
from tensorflow.python.framework import op_def_registry
root, ops = pathlib.Path(sys.argv[1]), sys.argv[2]
print(tf.__version__, [op for op in open(ops).read().split() if not op_def_registry.get(op)])
for path in sorted((root / "models").iterdir()):
    texts = json.loads((path / "texts.json").read_text())
    model = tf.saved_model.load(str(path / "1"))
    found = model.signatures["serving_default"](**{n: tf.constant(t) for n, t in texts.items()})
    np.savez(path / "found.npz", **{n: v.numpy() for n, v in found.items()})
preprocess = tf.saved_model.load(str(root / "hub" / "preprocess"))
encoder = tf.saved_model.load(str(root / "hub" / "encoder"))
print(encoder(preprocess(tf.constant(["the cat"])))["pooled_output"].shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.19", "2.20"])
def test_exports_answer_under(version, exports, tmp_path):
    root, wanted = exports
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = [f"tensorflow=={version}.*", f"tensorflow-text=={version}.*"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    command = [python, "-c", ALONE, str(root), str(OPS_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(version) and "[]\n(1, 12)" in done.stdout
    for name, answers in wanted.items():
        with np.load(root / "models" / name / "found.npz", allow_pickle=True) as found:
            # A last bit may be another whole number, where inputs are rounded to some.
            allowed = 0.02 if name == "int8" else 1e-5
            assert saved_model.largest_difference(dict(found), answers) < allowed, name
