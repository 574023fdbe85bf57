"""Files and folders that exist whole or not at all."""

import errno

import pytest

from kbert.errors import UserError
from kbert.utils import atomic

pytestmark = pytest.mark.smoke


def full_disk(folder):
    (folder / "some").write_text("x")
    raise OSError(errno.ENOSPC, "long text of HDF5\nover lines")


def test_a_file_is_replaced_or_stays(tmp_path):
    path = tmp_path / "values.json"
    atomic.write_json(path, {"a": [1]}, indent=None)
    assert path.read_text() == '{"a": [1]}\n'
    with pytest.raises(KeyError), atomic.file(path) as scratch:
        scratch.write_text("half")
        raise KeyError
    with pytest.raises(TypeError):
        atomic.write_json(path, {"a": object()})
    assert path.read_text() == '{"a": [1]}\n' and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_or_stays(tmp_path):
    target = tmp_path / "new" / "best"
    for text in ("1", "2"):
        with pytest.raises(KeyError), atomic.folder(target):
            raise KeyError
        with atomic.folder(target) as scratch:
            (scratch / "x").write_text(text)
        assert (target / "x").read_text() == text
        assert list(target.parent.iterdir()) == [target]


def test_a_folder_whose_replacement_was_killed(tmp_path):
    target = tmp_path / "best"
    for name in ("old", "partial"):
        with atomic.folder(tmp_path / f".best.{name}") as scratch:
            (scratch / name).touch()
    atomic.recover_folder(target)  # killed between the two renames
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (target / "old").exists()


def test_a_full_disk_is_one_line_and_leaves_the_folder_before(tmp_path):
    target = tmp_path / "best"
    with atomic.folder(target) as scratch:
        (scratch / "x").touch()
    with pytest.raises(UserError) as caught, atomic.folder(target) as scratch:
        full_disk(scratch)
    assert str(caught.value) == (
        f"cannot write {target}: No space left on device. Fix this and run the same command again."
    )
    with (
        pytest.raises(UserError, match=r"cannot write the box: No space .* again, or not\."),
        atomic.folder(target, "the box", ", or not") as scratch,
    ):
        full_disk(scratch)
    assert (target / "x").exists() and list(tmp_path.iterdir()) == [target]


def test_an_error_about_another_file_is_not_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic.folder(tmp_path / "a" / "b"):
        open(tmp_path / "missing")
    with (
        pytest.raises(UserError, match=r"cannot write .*b: No such"),
        atomic.folder(tmp_path / "a" / "b") as scratch,
    ):
        open(scratch / "missing")
