"""Who may import whom; a reader can rely on it."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "kbert"
SOURCES = {p.relative_to(PACKAGE): p.read_text("utf-8") for p in sorted(PACKAGE.rglob("*.py"))}
PURE = ("config.py", "errors.py", "features.py", "flags.py", "formats.py", "__init__.py")
# A TensorFlow checkpoint is read and written by TensorFlow; and what makes its steps fast.
ON_TENSORFLOW = (pathlib.Path("model/weights/google.py"), pathlib.Path("model/fused_tf.py"))
ABOVE = ("kbert.tasks", "kbert.train", "kbert.serving")
EVERYWHERE = ("keras_nlp", "keras_hub", "transformers", "torch", "export", "tests", "benchmarks")
EVERYWHERE += ("tfx", "tensorflow_transform", "tensorflow_model_analysis")


def forbidden(path):
    """Modules that a file of the package must not import."""
    part = path.parts[0] if len(path.parts) > 1 else None
    if part == "data":
        return (*EVERYWHERE, "keras", "kbert.model", *ABOVE)
    if path in ON_TENSORFLOW:
        return (*EVERYWHERE, "kbert.data", *ABOVE)
    if part == "model":
        return (*EVERYWHERE, "tensorflow", "tensorflow_text", "kbert.data", *ABOVE)
    if part == "tasks":
        return (*EVERYWHERE, "kbert.train", "kbert.serving")
    if part == "serving":
        return (*EVERYWHERE, "kbert.train")
    if part == "train":
        return (*EVERYWHERE, "kbert.serving")
    if part == "settings" or (part is None and path.name in PURE):
        return (*EVERYWHERE, "tensorflow", "tensorflow_text", "keras", "kbert.data", "kbert.model")
    return EVERYWHERE


def imported(source):
    """Names of the modules that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(path, source):
    """What a file imports that it must not."""
    rules = forbidden(path)
    return [n for n in imported(source) if any(n == r or n.startswith(f"{r}.") for r in rules)]


def test_import_rules():
    found = {path: breaches(path, source) for path, source in SOURCES.items()}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/heads.py", "def f():\n    import tensorflow as tf"),
        ("model/heads.py", "from tensorflow.math import sin"),
        ("model/heads.py", "from kbert import data"),
        ("data/pairs.py", "import keras.ops"),
        ("config.py", "from kbert.data import x"),
        ("train/loop.py", "import keras_hub"),
        ("tasks/spans.py", "from kbert.train import losses"),
        ("serving/hub.py", "from kbert.train import loop"),
        ("train/loop.py", "import kbert.serving.hub"),
        ("serving/hub.py", "from tfx import v1"),
    ],
)
def test_the_check_sees_breaches(path, source):
    assert breaches(pathlib.Path(path), source)


def test_beam_is_imported_by_the_functions_that_need_it():
    found = []
    for path, source in SOURCES.items():
        tree = ast.parse(source)
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imported(ast.unparse(tree))
        found += [str(path) for name in names if name.startswith("apache_beam")]
    assert found == []


def test_importing_kbert_loads_no_framework():
    script = "import sys, kbert; print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_every_name_at_the_top_is_there():
    script = "import kbert; print(all(getattr(kbert, name) for name in kbert.__all__), dir(kbert))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("True"), done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        __import__("kbert").nothing  # noqa: B018
