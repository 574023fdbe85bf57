"""Prepared corpora on remote storage: `ram://` stands for one."""

import concurrent.futures
import json
import pathlib
import shutil

import pytest
import tensorflow as tf
from faulty import FaultyFiles, unavailable

from kbert.corpus import Corpus, prepare
from kbert.corpus.corpus import is_prepared
from kbert.corpus.remote_cache import cache_folder
from kbert.errors import UserError
from kbert.utils import remote_storage, storage

TEXT = "the cat sat\na dog\n\nthe mat and a dog\n\nthe dog ran\n"
NAMES = ["00000.documents", "00000.ids", "00000.sentences", "corpus.json"]
NAMES += ["tokenizer_config.json", "unigrams.npy", "vocab.txt"]


@pytest.fixture
def url(request, tmp_path, vocab_file, monkeypatch):
    """A remote corpus of the test's own; what is fetched is kept in `cache`."""
    monkeypatch.setenv("KBERT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.txt").write_text(TEXT)
    prepare(str(tmp_path / "t.txt"), tmp_path / "local", vocab_file)
    url = f"ram://fetching/{request.node.name}".translate({91: "-", 93: ""})  # no glob
    tf.io.gfile.makedirs(url)
    for path in (tmp_path / "local").iterdir():
        storage.copy(path, f"{url}/{path.name}")
    return url


@pytest.fixture
def files(monkeypatch):
    """Faulty file systems without waits."""
    found = FaultyFiles()
    monkeypatch.setattr(remote_storage, "gfile", found)
    monkeypatch.setattr(remote_storage, "FIRST_WAIT_S", 0)
    return found


def assert_equals_local(corpus, tmp_path):
    for name in NAMES:
        assert (corpus.folder / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert (
        corpus.read(0, corpus.tokens).tolist()
        == Corpus(tmp_path / "local").read(0, corpus.tokens).tolist()
    )


def test_a_remote_corpus_is_fetched_once(tmp_path, url, files):
    report = []
    found = Corpus(url, report=report.append)
    assert_equals_local(found, tmp_path)
    assert found.folder.parent == tmp_path / "cache" and files.count("copy") == 6
    assert report == [f"downloading {url} to {found.folder}, which later runs reuse"]
    assert Corpus(url, report=report.append).folder == found.folder
    assert files.count("copy") == 6 and len(report) == 1
    other = Corpus(f"{url}/", cache_dir=tmp_path / "other")
    assert other.folder.parent == tmp_path / "other" and files.count("copy") == 12
    assert is_prepared(url) and not is_prepared(f"{url}x")
    assert is_prepared(tmp_path / "local") and not is_prepared(tmp_path)


def test_a_corpus_that_changed_is_fetched_anew(tmp_path, url, vocab_file):
    before = Corpus(url)
    (tmp_path / "t.txt").write_text(TEXT + "\nthe end\n")
    prepare(str(tmp_path / "t.txt"), tmp_path / "next", vocab_file)
    tf.io.gfile.rmtree(url)
    for path in (tmp_path / "next").iterdir():
        storage.copy(path, f"{url}/{path.name}")
    after = Corpus(url)
    assert after.documents == before.documents + 1 == 4 and after.folder != before.folder


def test_fetching_that_broke_off_goes_on(tmp_path, url, files):
    files.faults["copy"] = [None] * 4
    files.always["copy"] = unavailable()
    with pytest.raises(UserError, match=r"cannot copy ram://.* gave up after 6 attempts"):
        Corpus(url)
    (partial,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert partial.name.endswith(".partial") and not (partial / "corpus.json").exists()
    files.always.clear()
    files.calls.clear()
    files.faults["copy"] = [5, 0]  # the first two arrive truncated
    assert_equals_local(Corpus(url), tmp_path)
    assert 4 <= files.count("copy") <= 6  # 2 to 4 files are left, 2 are copied twice
    assert not partial.exists()


def test_files_that_are_not_what_the_manifest_says(tmp_path, url):
    with tf.io.gfile.GFile(f"{url}/00000.ids", "rb") as file:
        data = file.read()
    tf.io.gfile.remove(f"{url}/00000.ids")
    with tf.io.gfile.GFile(f"{url}/00000.ids", "wb") as file:
        file.write(b"\x07" + data[1:])
    message = r"ram://.*/00000\.ids is damaged: its checksum differs from the manifest's"
    with pytest.raises(UserError, match=message):
        Corpus(url)
    tf.io.gfile.remove(f"{url}/00000.ids")
    with pytest.raises(UserError, match=r"ram://.*/00000\.ids is missing"):
        Corpus(url)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir() and p.suffix != ".partial"]
    with pytest.raises(UserError, match=r"ram://none is not a prepared corpus"):
        Corpus("ram://none")
    with pytest.raises(UserError, match=r"does not support s3://"):
        Corpus("s3://bucket/corpus")


def test_a_local_copy_that_was_damaged_is_noticed(url):
    found = Corpus(url)
    path = found.folder / "00000.sentences"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"00000\.sentences is damaged: its checksum"):
        Corpus(url)


def test_a_manifest_names_files_of_its_folder_alone(tmp_path, url):
    shutil.copytree(tmp_path / "local", tmp_path / "bad")
    values = json.loads((tmp_path / "bad/corpus.json").read_text())
    values["shards"][0]["name"] = "../00000"
    (tmp_path / "bad/corpus.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"corpus\.json names a file outside its folder"):
        Corpus(tmp_path / "bad")


def test_several_at_once_fetch_once(tmp_path, url, files):
    files.delay_s = 0.02
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(Corpus, [url] * 4))
    assert files.count("copy") == 6 and len({corpus.folder for corpus in found}) == 1


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("KBERT_CACHE", "~/mine")
    assert cache_folder() == pathlib.Path.home() / "mine"
    monkeypatch.delenv("KBERT_CACHE")
    assert cache_folder() == pathlib.Path.home() / ".cache/kbert"


@pytest.mark.parametrize("options", [{}, {"deduplicate": True}])
def test_preparing_from_and_to_remote_folders(tmp_path, url, vocab_file, files, options):
    """The same files as locally; the manifest comes last."""
    for name in ("a.txt", "b.txt"):
        storage.copy(tmp_path / "t.txt", f"{url}-in/{name}")
    (tmp_path / "t.txt").rename(tmp_path / "a.txt")
    shutil.copy(tmp_path / "a.txt", tmp_path / "b.txt")
    expected = prepare(f"{tmp_path}/[ab].txt", tmp_path / "expected", vocab_file, **options)
    files.faults["copy"], files.faults["read"] = [unavailable(), 3], [9, 0, unavailable()]
    found = prepare(f"{url}-in/*.txt", f"{url}-out", vocab_file, **options)
    uploads = [args[1] for name, args in files.calls if name == "copy" and args[1].startswith(url)]
    assert uploads[-1] == f"{url}-out/corpus.json"
    names = storage.list_folder(f"{url}-out")
    assert names == sorted(path.name for path in expected.folder.iterdir())
    for name in names:
        if name != "corpus.json":
            assert (found.folder / name).read_bytes() == (expected.folder / name).read_bytes()
    inputs = [found.manifest.pop("inputs"), expected.manifest.pop("inputs")]
    assert found.manifest == expected.manifest
    assert [path for path, *_ in inputs[0]] == [f"{url}-in/a.txt", f"{url}-in/b.txt"]
    assert [size for _, size, _ in inputs[0]] == [size for _, size, _ in inputs[1]]
    with pytest.raises(UserError, match=r"-out exists and is not empty"):
        prepare(f"{url}-in/*.txt", f"{url}-out", vocab_file)


def test_nothing_is_left_of_what_failed(tmp_path, url, vocab_file, files):
    files.faults["copy"], files.always["copy"] = [None, None], unavailable()
    with pytest.raises(
        UserError, match=r"cannot copy .*00000\.sentences: gave up after 6 attempts"
    ):
        prepare(f"{tmp_path}/t.txt", f"{url}-out", vocab_file)
    assert files.count("copy") == 8 and storage.list_folder(f"{url}-out") == []
    with pytest.raises(UserError, match=r"no file matches 'ram://none/\*\.txt'"):
        prepare("ram://none/*.txt", f"{url}-out", vocab_file)
    with pytest.raises(UserError, match=r"is a folder\. Give its files: ram://.*/\*\.txt"):
        prepare(url, f"{url}-out", vocab_file)
