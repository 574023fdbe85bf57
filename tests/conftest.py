"""Fixtures shared by several test files."""

import fcntl
import gc
import os
import pathlib
import shutil
import sys
import tempfile

# Set before TensorFlow is imported. TensorFlow imports JAX if it is installed, and JAX would set
# this variable to 1 for every process that a test starts, unlike in a user's shell.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Share compiled XLA programs among all processes of a test run.
if "TF_XLA_FLAGS" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory()
    os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={COMPILED.name}"
# Tests compile more than they compute: without optimization they take a tenth less time.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import short_runs
import warm_python

if "WARM_PYTHON" not in os.environ:
    FOLDER = tempfile.TemporaryDirectory()
    warm_python.install(FOLDER.name)

import numpy as np
import pytest

# TensorFlow is imported in fixtures: the main process of pytest-xdist, which runs no test, starts
# its workers 5 s earlier without it.

# torch for GPUs imports triton, which crashes a process that has imported TensorFlow.
sys.modules["triton"] = None
SHARED_DATA = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "un", "##want", "##ed", "run"]
WORDS += ["##ning", ",", ".", "!", "[", "]", "mask"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One worker more than CPUs, since tests often wait for the programs that they start."""
    return os.cpu_count() + 1


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Prints the exit status of a pytest-xdist worker that crashed; -15 is SIGTERM."""
    if error:
        print(f"\n{node.gateway.id} ended with status {node.gateway._io.popen.wait(30)}")


gc.set_threshold(100_000, 50, 1000)  # graphs have many objects, so full collections are slow
gc.disable()  # the many objects of imports stay, so collections would only take time


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _tidy():
    """Collects garbage after each module and freezes the rest, which speeds up collections."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch, request):
    """Shortens the runs of a test and of its programs, except with the fixture `curves`."""
    if "curves" not in request.fixturenames:
        monkeypatch.setenv(short_runs.VARIABLE, "1")
        if "kbert.train" in sys.modules:
            short_runs.shorten(monkeypatch.setattr)


@pytest.fixture
def curves():
    """Enables `curves.png` and the predictions of masked words in a test."""


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Returns a function of a name and a function that fills a folder; it returns the folder.

    The folder is filled once for all workers of pytest-xdist. Tests must not change it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made(name, fill):
        folder = root / f"made-{name}"
        with open(root / f"{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                scratch = root / f"making-{name}-{os.getpid()}"
                scratch.mkdir()
                fill(scratch)
                scratch.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def folders(made_once):
    """dict of kind in `exports.KINDS` -> folder of weights, as a training run writes it."""
    from exports import KINDS, write_folders

    root = made_once("folders", write_folders)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="session")
def exported(made_once, folders, tmp_path_factory):
    """Returns a function from a kind to (folder of its versions, its Endpoint), with version 7.

    The export is created once, in another folder, and the original weights are deleted.
    """
    from exports import KINDS

    from kbert.serving import saved_model
    from kbert.settings import TextLimits

    root, methods = tmp_path_factory.mktemp("exported"), {}

    def of(kind):
        def fill(folder):
            weights = shutil.copytree(folders[kind], root / "weights")
            method = saved_model.load_endpoint(weights, KINDS[kind][3])
            method.limits = TextLimits(max_windows=1 << 13)  # they have at most 16 tokens
            saved_model.save_endpoint(method, root / kind)
            (root / kind).rename(folder / "7")
            shutil.rmtree(weights)

        base = made_once(f"export-{kind}", fill)
        if kind not in methods:
            methods[kind] = saved_model.load_endpoint(folders[kind], KINDS[kind][3])
        return base, methods[kind]

    return of


@pytest.fixture
def shared_data():
    """Folder of public data sets, which are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the public data sets in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def vocab_file(tmp_path):
    """Path of a vocabulary of 25 entries."""
    from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

    path = tmp_path / "vocab.txt"
    write_vocab([*SPECIAL_TOKENS, *WORDS], path)
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A corpus of 40 documents in two shards; words are numbers, so that spans are identifiable."""
    from kbert.corpus import prepare
    from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

    folder = tmp_path_factory.mktemp("corpus")
    words = [f"w{i}" for i in range(345)] + [f"##{i}" for i in range(50)]
    write_vocab([*SPECIAL_TOKENS, *words], folder / "vocab.txt")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        lines = []
        for _ in range(20):
            for _ in range(rng.integers(1, 9)):
                tokens = [words[i] for i in rng.integers(0, 345, rng.integers(2, 12))]
                tokens[::3] = [f"{token}{rng.integers(50)}" for token in tokens[::3]]
                lines.append(" ".join(tokens))
            lines.append("")
        (folder / f"{name}.text").write_text("\n".join(lines))
    return prepare(f"{folder}/*.text", folder / "corpus", folder / "vocab.txt")
