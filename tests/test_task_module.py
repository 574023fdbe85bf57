"""A task that no file of kbert knows: fine-tuned, evaluated, predicted and exported."""

import json
import os
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from warm_python import PYTHON

import kbert
from kbert import export, finetune, predict
from kbert.errors import UserError
from kbert.inference import prediction
from kbert.settings import DistillConfig, ExportConfig, PredictConfig
from kbert.tasks import names, registry
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

MODULE = '''
import dataclasses

from kbert.fields import setting
from kbert.settings import FinetuneConfig
from kbert.tasks.classify import Classification, ClassificationEndpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthConfig(FinetuneConfig):
    sure_from: float = setting(0.5, "smallest score of a sure prediction", at_least=0, at_most=1)


class LengthEndpoint(ClassificationEndpoint):
    name = "length"


class Length(Classification):
    """Whether a text is short or long, learnt from how many words it has."""

    name = "length"
    method = "length"
    texts = (1, 1)
    endpoint = LengthEndpoint
    config_class = LengthConfig

    @staticmethod
    def label(value, where):
        return "long" if int(value) > 4 else "short"

    def predictions(self, *arguments):
        rows = super().predictions(*arguments)
        return [row | {"is_sure": row["score"] >= self.sure_from} for row in rows]


'''
WORDS = ["the", "cat", "sat", "on", "a", "mat"]
BERT = {
    **{"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3},
    **{"intermediate_size": 32, "max_position_embeddings": 32},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the module, examples, and a BERT that knows nothing."""
    root = tmp_path_factory.mktemp("length")
    (root / "length_task.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(WORDS, n)) + f"\t{n}\n" for n in rng.integers(1, 9, 64)]
    (root / "rows.tsv").write_text("".join(rows))
    write_vocab([*SPECIAL_TOKENS, *WORDS], root / "vocab.txt")
    tokenizer = kbert.BertTokenizer(root / "vocab.txt")
    keras.utils.set_random_seed(0)
    config = kbert.BertConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.2, **BERT)
    kbert.BertForPreTraining(config).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    return root


def run(root, program, *flags, text=""):
    """Standard output of a program of kbert in the folder."""
    command = [PYTHON, "-m", f"kbert.{program}", *(f"--{flag}" for flag in flags)]
    here = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    environment = os.environ | {"PYTHONPATH": here}
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=root, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_task_in_a_module_of_its_own(root):
    module = "task_module=length_task"
    flags = (
        "task=length",
        "max_seq_length=16",
        "init_from=bert",
        "train_file=rows.tsv",
        "eval_file=rows.tsv",
    )
    flags = (*flags, "sure_from=1", "jit=off")
    run(root, "finetune", module, *flags, "epochs=10", "learning_rate=3e-3", "output_dir=run")
    best = "model=run/finetuning/best"
    settings = json.loads((root / "run/finetuning/best/task.json").read_text())
    assert (settings["task"], settings["sure_from"]) == ("length", 1.0)
    assert "--sure_from=1.0\n" in (root / "run/finetuning/run.flags").read_text()
    scores = run(root, "evaluate", module, best, "eval_file=rows.tsv")
    assert json.loads(scores[scores.rindex("\n{") :])["accuracy"] > 0.9
    texts = ["the cat", "the cat sat on a mat on a mat"]
    method = "method=length"
    lines = run(root, "predict", module, best, method, text="".join(f"{text}\n" for text in texts))
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [(row["label"], row["is_sure"]) for row in rows] == [("short", False), ("long", False)]
    run(root, "export", module, best, method, "output_dir=models/length/1")
    exported = tf.saved_model.load(root / "models/length/1")
    answer = exported.signatures["serving_default"](text=tf.constant(texts))
    assert answer["label"].numpy().tolist() == [b"short", b"long"]


@pytest.fixture
def registered(monkeypatch):
    """Leaves the registry as it was."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def test_a_task_of_an_installed_package(root, registered, monkeypatch):
    metadata = root / "site/length_task-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: length_task\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kbert.tasks]\nlength = length_task:Length\n")
    monkeypatch.syspath_prepend(root)
    monkeypatch.syspath_prepend(root / "site")
    assert not names.all_built_in(None)  # so --method is checked once the tasks are loaded
    kind = registry.get_task("length")
    assert kind.method == "length" and registry.tasks()["length"] is kind
    assert registry.task_of_method("length") is kind


def test_settings_of_a_task_of_its_own(root, registered, monkeypatch):
    monkeypatch.syspath_prepend(root)
    help = run(root, "finetune", "task_module=length_task", "task=length", "help")
    assert "--sure_from=NUMBER\n      smallest score of a sure prediction (>= 0 and <= 1)" in help
    config_class = finetune.config_class("length_task", "length")
    with pytest.raises(UserError, match=r"sure_from must be >= 0 and <= 1; got 2.0"):
        config_class(task="length", init_from="bert", train_file="rows.tsv", sure_from=2)
    config = config_class(task="length", init_from="bert", train_file="rows.tsv", sure_from=0.75)
    tokenizer = kbert.BertTokenizer(root / "vocab.txt")
    task = registry.make_task(config, tokenizer, ("long", "short"))
    shutil.copytree(root / "bert", root / "teacher")
    registry.write_task_settings(root / "teacher", task)
    settings = registry.read_task_settings(root / "teacher")
    assert registry.task_from_settings(settings, tokenizer, kbert.BertConfig()).sure_from == 0.75
    files = {"teacher": str(root / "teacher"), "train_file": "rows.tsv"}
    student = registry.make_task(DistillConfig(task="length", **files), tokenizer, ("a", "b"))
    assert student.sure_from == 0.75
    (root / "teacher/task.json").write_text(json.dumps(settings | {"sure_from": 2}))
    expected = r"'sure_from' must be a value of --sure_from \(smallest .*; >= 0 and <= 1\); got 2\."
    with pytest.raises(UserError, match=expected):
        registry.read_task_settings(root / "teacher")


def test_tasks_that_cannot_be_had(root, registered, monkeypatch):
    with pytest.raises(UserError, match=r"task must be one of classify, pair.*; got 'long'"):
        registry.get_task("long")
    with pytest.raises(UserError, match=r"--task_module=nowhere_task cannot be imported"):
        registry.load_task_module("nowhere_task")
    monkeypatch.setitem(sys.modules, "empty_task", types.ModuleType("empty_task"))
    with pytest.raises(UserError, match=r"--task_module=empty_task defines no subclass"):
        registry.load_task_module("empty_task")
    with pytest.raises(UserError, match=r"there are two tasks classify"):
        registry.register(type("Other", (registry.Classification,), {}))
    with pytest.raises(UserError, match=r"the task Nameless has no name"):
        registry.register(type("Nameless", (registry.Classification,), {"name": None}))
    with pytest.raises(UserError, match=r"the task Mute has no method. Give it one: method = "):
        registry.register(type("Mute", (registry.Classification,), {"name": "m", "method": None}))


def test_methods_that_do_not_exist():
    assert names.all_built_in(None) and not names.all_built_in("length_task")
    expected = r"method must be one of classify, tag, .*; got 'length'\. If it belongs to your own"
    with pytest.raises(UserError, match=expected):
        predict.check(PredictConfig(model="bert", method="length"))
    with pytest.raises(UserError, match=expected):  # known once the module is loaded
        prediction.predict(PredictConfig(model="bert", method="length"))
    with pytest.raises(UserError, match=r"one of classify, .*, encode; got 'similarity'"):
        export.check(ExportConfig(model="bert", output_dir="x", method="similarity"))
