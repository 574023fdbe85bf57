"""Local and remote paths; TensorFlow's `ram://` stands for a remote storage."""

import errno
import gzip
import random
import types

import pytest
import tensorflow as tf
from faulty import FaultyFiles, unavailable

from kbert.errors import UserError
from kbert.utils import remote_storage, storage

CONTENT = bytes(random.Random(0).choices(range(256), k=5003))


@pytest.fixture
def files(monkeypatch):
    """Faulty file systems, and no waits; `files.waits` has those that there would be."""
    found = FaultyFiles()
    found.waits = []
    monkeypatch.setattr(remote_storage, "gfile", found)
    monkeypatch.setattr(remote_storage, "time", types.SimpleNamespace(sleep=found.waits.append))
    return found


@pytest.fixture
def remote(request):
    """A remote folder of the test's own, with `a.bin`."""
    folder = f"ram://{request.node.name}".replace("[", "-").replace("]", "")
    write(f"{folder}/a.bin", CONTENT)
    return folder


def write(path, content):
    tf.io.gfile.makedirs(path.rpartition("/")[0])
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


def read(path):
    with storage.open_stream(path) as file:
        return file.read()


@pytest.mark.parametrize(
    ("path", "remote"),
    [("gs://b/x", True), ("s3://b", True), ("/a/b", False), ("a:/b", False), ("tfds:x", False)],
)
def test_which_paths_are_remote(path, remote):
    assert storage.is_remote(path) == remote


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_looking_at_folders(tmp_path, remote, kind):
    folder = str(tmp_path / "folder") if kind == "local" else f"{remote}/folder"
    assert storage.list_folder(folder) == [] and not storage.exists(folder)
    storage.make_folder(f"{folder}/inner")
    write(f"{folder}/b.txt", b"123")
    write(f"{folder}/a.txt", b"12345")
    write(f"{folder}/c.gz", b"")
    assert storage.list_folder(folder) == ["a.txt", "b.txt", "c.gz", "inner"]
    assert storage.glob(f"{folder}/*.txt") == [f"{folder}/a.txt", f"{folder}/b.txt"]
    assert storage.glob(f"{folder}/*.zip") == storage.glob(f"{folder}/none/*") == []
    found = storage.stat_all([f"{folder}/b.txt", f"{folder}/a.txt"])
    assert [size for size, _ in found] == [3, 5]
    assert kind == "remote" or all(time_ns > 1.6e18 for _, time_ns in found)
    assert storage.is_folder(folder) and not storage.is_folder(f"{folder}/a.txt")
    storage.remove(f"{folder}/a.txt")
    storage.remove(f"{folder}/a.txt")
    assert not storage.exists(f"{folder}/a.txt") and storage.exists(f"{folder}/b.txt")
    storage.remove(folder)
    assert not storage.exists(f"{folder}/b.txt")
    for function in (storage.stat, read):
        with pytest.raises(FileNotFoundError) as error:
            function(f"{folder}/b.txt")
        assert error.value.errno == errno.ENOENT and error.value.filename == f"{folder}/b.txt"


def test_streams_are_read_as_files_are(remote, monkeypatch):
    monkeypatch.setattr(remote_storage, "_CHUNK_BYTES", 64)
    assert read(f"{remote}/a.bin") == CONTENT
    generator = random.Random(1)
    with storage.open_stream(f"{remote}/a.bin") as file:
        for _ in range(50):
            place, count = generator.randrange(5100), generator.randrange(300)
            file.seek(place)
            assert file.tell() == place
            assert file.read(count) == CONTENT[place : place + count]
        file.seek(-3, 2)
        assert file.read() == CONTENT[-3:]
        file.seek(0)
        assert list(file) == CONTENT.splitlines(keepends=True) or b"\r" in CONTENT
    write(f"{remote}/a.gz", gzip.compress(CONTENT))
    with storage.open_stream(f"{remote}/a.gz") as file, gzip.open(file) as unpacked:
        assert unpacked.read() == CONTENT


def test_reading_goes_on_where_it_broke_off(remote, files, monkeypatch):
    """The service goes away, brings little, or nothing though there is more; and is slow."""
    monkeypatch.setattr(remote_storage, "_CHUNK_BYTES", 1000)
    files.faults["GFile"] = [unavailable(), None]
    files.faults["read"] = [700, unavailable(), 0, 0, unavailable(), 1]
    files.faults["stat"] = [unavailable()] * 3
    with storage.open_stream(f"{remote}/a.bin") as file:
        assert file.read() == CONTENT
    assert not any(files.faults.values())
    assert len(files.waits) == 8
    files.delay_s = 0.01
    assert read(f"{remote}/a.bin") == CONTENT


def test_waits_double_and_end(remote, files):
    files.always["read"] = unavailable("no route\nto host.")
    with storage.open_stream(f"{remote}/a.bin") as file:
        message = (
            r"cannot read ram://.*/a\.bin: gave up after 6 attempts; the last error: no route to"
        )
        with pytest.raises(storage.RetryError, match=message + r" host\.$"):
            file.read()
    assert files.count("read") == 6
    longest = [1, 2, 4, 8, 16]
    assert all(m / 2 <= wait <= m for wait, m in zip(files.waits, longest, strict=True))


def test_a_file_that_ends_too_soon(remote, files):
    files.faults["read"], files.always["read"] = [3], 0
    with pytest.raises(
        storage.RetryError, match=r"a\.bin: gave up .* the file ended after 3 of 5003 bytes"
    ):
        read(f"{remote}/a.bin")


@pytest.mark.parametrize(
    "error", ["DeadlineExceeded", "Aborted", "ResourceExhausted", "Internal", "Unavailable"]
)
def test_what_may_pass_is_tried_again(remote, files, error):
    files.faults["stat"] = [getattr(tf.errors, f"{error}Error")(None, None, "later")] * 5
    assert storage.stat(f"{remote}/a.bin")[0] == 5003


def test_what_does_not_pass_is_told_at_once(remote, files):
    files.always["glob"] = tf.errors.PermissionDeniedError(None, None, "not you\nnot today.")
    with pytest.raises(UserError, match=r"^cannot list ram://.*/\*: not you not today\.$"):
        storage.glob(f"{remote}/*")
    assert files.count("glob") == 1 and not files.waits


def test_a_folder_that_cannot_be_looked_at_is_not_taken_for_none(remote, files):
    files.faults["stat"] = [unavailable()]
    files.faults["listdir"] = [tf.errors.NotFoundError(None, None, "isdir failed inside")]
    assert storage.list_folder(remote) == ["a.bin"]
    files.always["stat"] = unavailable()
    for function in (storage.list_folder, storage.is_folder):
        with pytest.raises(storage.RetryError):
            function(remote)


@pytest.mark.parametrize(
    "function",
    [storage.glob, storage.stat, storage.open_stream, storage.list_folder, storage.make_folder],
)
def test_schemes_that_are_not_built_in(function):
    message = r"s3://bucket/a: this TensorFlow does not support s3:// .*Use gs://, copy the files"
    with pytest.raises(UserError, match=message):
        function("s3://bucket/a")


@pytest.mark.parametrize("way", ["up", "down"])
def test_copies(tmp_path, remote, files, way):
    source, target = f"{remote}/a.bin", str(tmp_path / "b.bin")
    if way == "up":
        (tmp_path / "a.bin").write_bytes(CONTENT)
        source, target = str(tmp_path / "a.bin"), f"{remote}/b.bin"
    files.faults["copy"] = [unavailable(), 5002, 0]
    storage.copy(source, target)
    assert read(target) == CONTENT and files.count("copy") == 4
    files.always["copy"] = 17
    message = (
        rf"cannot copy {source} to {target}: gave up after 6 attempts.*17 of 5003 bytes arrived"
    )
    with pytest.raises(storage.RetryError, match=message):
        storage.copy(source, target)
    with pytest.raises(FileNotFoundError):
        storage.copy(f"{remote}/none", target)


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_staged_files_arrive_together(tmp_path, remote, files, kind, monkeypatch):
    folder = str(tmp_path) if kind == "local" else f"{remote}/to"
    storage.make_folder(folder)
    order = []
    replace = storage.os.replace
    monkeypatch.setattr(storage.os, "replace", lambda a, b: (order.append(b), replace(a, b)))

    def fill(local):
        for name in ("a", "b", "c"):
            write(f"{local}/{name}", name.encode() * 9)
        assert storage.glob(f"{folder}/?") == []

    with pytest.raises(ZeroDivisionError), storage.staging_folder(folder) as local:
        fill(local)
        raise ZeroDivisionError
    assert storage.list_folder(folder) == []
    with storage.staging_folder(folder, last="b") as local:
        fill(local)
    assert storage.list_folder(folder) == ["a", "b", "c"] and read(f"{folder}/b") == b"b" * 9
    order = order or [args[1] for name, args in files.calls if name == "copy"]
    assert [path[-1] for path in order] == ["a", "c", "b"]
