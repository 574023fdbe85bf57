"""Folders that an earlier version wrote, and folders of a newer version.

`formats/write.py` wrote the stored folders. The expected ids follow from its vocabulary and its
text; `formats/expected_1.json` has the other expected numbers, which the same version computed.
"""

import json
import pathlib
import re
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from formats import write
from marks import slow
from run_files import weights_of
from warm_python import PYTHON

import kbert
from kbert.corpus import Corpus
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.train.checkpoint import verified_state
from kbert.utils.formats import FILE_FORMATS, check_format

EXPECTED = json.loads((write.FOLDER / "expected_1.json").read_text())
# Other CPUs round differently. The first digits of a wrong weight or a wrong id differ.
ROUNDING = 1e-4


def assert_close(found, expected):
    """Compares JSON values; numbers may differ by ROUNDING."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys()  # later versions may return more
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for value, other in zip(found, expected, strict=True):
            assert_close(value, other)
    else:
        same = isinstance(expected, str) or pytest.approx(expected, abs=ROUNDING) == found
        assert same and (not isinstance(expected, str) or found == expected)


@pytest.fixture
def stored(tmp_path):
    """A copy of the stored folders."""
    return shutil.copytree(write.FOLDER, tmp_path / "formats")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The stored exports."""
    return write.unpack(tmp_path_factory.mktemp("exports"))


@pytest.mark.smoke
def test_stored_corpus_is_read():
    corpus = Corpus(write.FOLDER / "corpus_1")
    # "a cat sat . a dog ran ." and "cat ##s ran ."; ids 5 to 11 are a, cat, sat, dog, ran, ##s, .
    assert corpus.read(0, corpus.tokens).tolist() == [5, 6, 7, 11, 5, 8, 9, 11, 6, 10, 9, 11]
    assert corpus.document_starts.tolist() == [0, 8, 12]


@pytest.mark.smoke
def test_stored_tokenizer_is_read():
    tokenizer = kbert.BertTokenizer.from_pretrained(write.FOLDER / "tokenizer_1")
    # Ids 5 to 10 are Cat, ##s, é, 猫, ##猫, [E1]: cased, accents kept, ideographs inside words.
    ids = tokenizer.tokenize(["Cats[E1]é 猫猫 cat"]).to_list()
    assert ids == [[5, 6, 10, 7, 8, 9, 1]]


def test_stored_pretrained_weights_are_read():
    model = kbert.BertForPreTraining.from_pretrained(write.FOLDER / "pretraining_1/pretrain/final")
    weights = {name: weight.numpy() for name, weight in model.named_weights().items()}
    assert weights.keys() == EXPECTED["weights"].keys()
    for name, total in EXPECTED["weights"].items():
        assert weights[name].sum() == pytest.approx(total, abs=1e-5), name
    assert_close(write.fill_mask(), EXPECTED["fill_mask"])


# Few of them by default: building a model takes a second.
@pytest.mark.parametrize(
    "task",
    ["qa", "embed", *slow("classify", "tag", "pair", "regress", "multilabel", "choice", "rerank")],
)
def test_stored_tasks_are_read(task):
    assert_close(write.predictions(task), EXPECTED[task])


@pytest.mark.parametrize(
    ("program", "run"),
    [
        ("pretrain", "pretraining_1/pretrain"),
        *slow(("finetune", "tasks_1/classify/finetuning")),
    ],
)
def test_stored_runs_resume(program, run, stored):
    """From step 3 of 6, with the flags of the run; the result equals the stored final weights."""
    shutil.rmtree(stored / run / "final")
    command = [PYTHON, "-m", f"kbert.{program}", f"--flagfile={run}/run.flags"]
    done = subprocess.run(command, cwd=stored, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting from step 3 of" in done.stdout and "note:" not in done.stdout
    expected, found = (weights_of(root / run / "final") for root in (write.FOLDER, stored))
    before = weights_of(stored / run / "checkpoint/step_00000003")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=ROUNDING, err_msg=name)
    name = "bert/pooler/dense/kernel"
    assert np.abs(before[name] - expected[name]).max() > 50 * ROUNDING


def test_stored_exports_are_read(exports):
    from kbert.server.servable import Servable
    from kbert.serving.saved_model import load_exported

    (expected,), texts = EXPECTED["classify"], write.TASKS["classify"][1]
    servable = Servable(str(exports / "classify"), "tensorflow")
    found = servable.compute(servable.signature(""), {"text": np.array(*texts, object)})
    assert found["label"].tolist() == [expected["label"].encode()]
    assert_close(found["probabilities"].tolist(), [list(expected["scores"].values())])
    assert_close(kbert.Predictor.from_pretrained(exports / "classify")(*texts), [expected])
    assert load_exported(exports / "classify").name == "classify"
    assert_close(write.tf_hub(exports), EXPECTED["tf_hub"])


def change_format(path, change):
    """Replaces the format of a file by `change(format)`."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["format"] = change(int(file.attrs["format"]))
    else:
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"format": change(values["format"])}))


def read_state(path):
    """Verifies a checkpoint whose checksum, too, is of another version."""
    values = json.loads(path.read_text())
    values.pop("checksum")
    path.write_text(json.dumps(values))
    verified_state(path.parent)


READERS = {
    "corpus_1/corpus.json": lambda path: Corpus(path.parent),
    "pretraining_1/pretrain/checkpoint/step_00000003/state.json": read_state,
    "pretraining_1/pretrain/final/weights.h5": lambda path: ModelFolder(path.parent).config,
    "tasks_1/embed/final/task.json": lambda path: kbert.Predictor.from_pretrained(path.parent),
    "classify/assets.extra/kbert.json": lambda path: ModelFolder(path.parent.parent),
}


def next_format(format):
    return format + 1 if isinstance(format, int) else "kbert corpus 2"


@pytest.mark.parametrize("name", READERS)
def test_a_newer_format_is_refused(name, stored):
    write.unpack(stored)
    path, read = stored / name, READERS[name]
    known = FILE_FORMATS[path.name][0]
    change_format(path, next_format)
    newer = re.escape(f"(format {next_format(known)!r}; this version reads {known!r})")
    with pytest.raises(UserError, match=rf"{path.name} was written by a newer kbert {newer}. Inst"):
        read(path)


def test_each_format_has_a_reader_here():
    assert {pathlib.Path(name).name for name in READERS} == FILE_FORMATS.keys()


def test_servers_and_other_readers_refuse_a_newer_export(stored):
    from kbert.server.servable import Servable
    from kbert.serving.saved_model import load_exported

    folder = write.unpack(stored) / "classify"
    change_format(folder / "assets.extra/kbert.json", next_format)
    for read in (kbert.Predictor.from_pretrained, Servable, load_exported):
        with pytest.raises(UserError, match=r"kbert.json was written by a newer kbert"):
            read(str(folder))


def test_files_without_a_format_have_format_1(stored):
    folder = stored / "tasks_1/classify/finetuning/final"
    values = json.loads((folder / "task.json").read_text())
    values.pop("format")
    (folder / "task.json").write_text(json.dumps(values))
    with h5py.File(folder / "weights.h5", "r+") as file:
        del file.attrs["format"]
    found = kbert.Predictor.from_pretrained(folder)(*write.TASKS["classify"][1])
    assert_close(found, EXPECTED["classify"])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *(("corpus.json", format) for format in ("kbert corpus 0", "kbert corpus x", 2, None)),
        *(("task.json", format) for format in (0, True, "2", [2], 1.5)),
    ],
)
def test_a_format_that_does_not_exist(name, found, tmp_path):
    known, remedy = FILE_FORMATS[name]
    message = f"has the format {found!r}; this version of kbert reads {known!r}. {remedy}"
    with pytest.raises(UserError, match=re.escape(message)):
        check_format(tmp_path / name, found)
