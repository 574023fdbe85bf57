"""Who may import whom; a reader can rely on it."""

import ast
import pathlib
import subprocess
import sys

import pytest
from warm_python import PYTHON

PACKAGE = pathlib.Path(__file__).parent.parent / "kbert"
# In an sdist, kbert/packaged holds copies of files outside the package instead of links.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "packaged" not in path.parts)
# A folder, or a module at the top, imports only from those that stand before it. The programs, all
# other modules at the top, come last and import all.
ORDER = (
    *("errors", "features", "fields", "config", "settings", "utils", "tokenizer", "corpus"),
    *("data", "model"),
    *("tasks", "inference", "visualization", "compression", "train", "serving", "server", "hub"),
)
PURE = (
    "errors",
    "features",
    "fields",
    "config",
    "settings",
    "utils/encodings.py",
    "utils/flags.py",
    "utils/foreign_weights.py",
    "utils/formats.py",
    "utils/input_files.py",
    "utils/keras_registration.py",
    "utils/storage.py",
    "corpus/arrow_files.py",
    "corpus/foreign_text.py",
    "corpus/input_checks.py",
    "corpus/text_formats.py",
    "corpus/text_sources.py",
    "data/input_checks.py",
    "data/records.py",
    "data/tables.py",
    "server/credentials.py",
    "server/input_checks.py",
    "server/log.py",
    "tasks/names.py",
    "__init__",
)
# A TensorFlow checkpoint is read and written by TensorFlow; and what makes its steps fast.
ON_TENSORFLOW = ("model/weights/google.py", "model/fused_tf.py")
# What reads and writes whole folders of weights.
ON_TOKENIZER = ("model/folder.py", "model/conversion.py")
# A dense layer of sentence-transformers that is only a pickle is read by torch, if installed.
ON_TORCH = ("model/weights/sentence_transformers.py",)
EVERYWHERE = ("keras_nlp", "keras_hub", "transformers", "export", "tests", "benchmarks")
EVERYWHERE += ("tfx", "tensorflow_transform", "tensorflow_model_analysis")
TENSORFLOW = ("tensorflow", "tensorflow_text")


def place(path):
    """The folder of a file of the package, or its own name at the top."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def forbidden(path):
    """Modules that a file of the package must not import, or modules below them."""
    part = place(path)
    below = ORDER[ORDER.index(part) + 1 :] if part in ORDER else ()
    modules = [*EVERYWHERE, *(f"kbert.{name}" for name in below)]
    modules += [] if path.as_posix() in ON_TORCH else ["torch"]
    if part in ORDER or part == "__init__":  # programs import each other
        modules += [f"kbert.{p.stem}" for p in PACKAGE.glob("*.py") if p.stem not in ORDER]
    if part in PURE or path.as_posix() in PURE:
        modules += [*TENSORFLOW, "keras"]
    if part in ("tokenizer", "corpus", "data"):
        modules.append("keras")
    if part == "model":
        modules += ["kbert.corpus", "kbert.data"]
        modules += [] if path.as_posix() in ON_TOKENIZER else ["kbert.tokenizer"]
        modules += [] if path.as_posix() in ON_TENSORFLOW else TENSORFLOW
    return modules


def is_for_types(node):
    """Whether a node of a syntax tree is `if TYPE_CHECKING:`, which does not run."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(source):
    """Names of the modules that a source imports, anywhere in it."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not is_for_types(node)]
    for node in ast.walk(tree):
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
    paths = {path: path.relative_to(PACKAGE) for path in FILES}
    found = {str(p): breaches(p, path.read_text(encoding="utf-8")) for path, p in paths.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_folder_has_its_place():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    folders -= {"__pycache__", "packaged"}
    modules = {name for name in ORDER if (PACKAGE / f"{name}.py").exists()}
    assert folders | modules == set(ORDER)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/task_heads.py", "def f():\n    import tensorflow as tf"),
        ("model/task_heads.py", "from tensorflow.math import sin"),
        ("model/task_heads.py", "from kbert import data"),
        ("model/task_heads.py", "from kbert.tokenizer.vocab import read_vocab"),
        ("data/sentence_pairs.py", "import keras.ops"),
        ("corpus/corpus.py", "from kbert.data import masking"),
        ("config.py", "from kbert.data import x"),
        ("utils/flags.py", "import tensorflow"),
        ("utils/locks.py", "from kbert import evaluate"),
        ("train/trainer.py", "import keras_hub"),
        ("tasks/spans.py", "from kbert.train import losses"),
        ("inference/predictor.py", "from kbert.visualization import plots"),
        ("serving/tf_hub.py", "import kbert.server.demo"),
        ("train/trainer.py", "import kbert.serving.tf_hub"),
        ("compression/teacher.py", "from kbert.train import step"),
        ("serving/tf_hub.py", "from tfx import v1"),
        ("server/demo.py", "from kbert.attention import main"),
    ],
)
def test_the_check_sees_breaches(path, source):
    assert breaches(pathlib.Path(path), source)


def test_beam_is_imported_by_the_functions_that_need_it():
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if any(name.startswith("apache_beam") for name in imported(ast.unparse(tree))):
            found.append(str(path.relative_to(PACKAGE)))
    assert found == []


def test_importing_kbert_loads_no_framework():
    script = "import sys, kbert; print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_every_name_at_the_top_is_there():
    script = "import kbert; print(all(getattr(kbert, name) for name in kbert.__all__), dir(kbert))"
    done = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("True"), done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        __import__("kbert").nothing  # noqa: B018
