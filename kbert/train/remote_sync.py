"""A run's folder on remote storage: a local working copy, uploaded after every checkpoint."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from posixpath import basename, dirname

from kbert.corpus.corpus import MANIFEST
from kbert.errors import UserError
from kbert.train.checkpoint import STATE_FILE
from kbert.utils import storage
from kbert.utils.logging import log

# A folder with one of these files is complete, so they are uploaded last.
_COMPLETION_MARKERS = (STATE_FILE, MANIFEST)
# These files may grow during the upload.
_GROWING_FILES = ("metrics.jsonl", "events.")


class RemoteRunDir:
    """The folder of a run: local and, if its path has a scheme such as gs://, also remote.

    If the folder is remote, the run works in a temporary local folder: it first downloads the
    remote files, and later uploads changes. It uploads only complete files; files that mark a
    folder as complete are uploaded last.

    Args:
        url: the remote path, or None if the run's folder is local.
        folder: the local folder.
        writes: whether to upload changes; False if another process uploads them.
    """

    def __init__(self, url: str | None, folder: pathlib.Path, writes: bool = True) -> None:
        self.folder = folder
        self._url, self._writes = url, writes
        self._sent = {}  # path in the folder -> (size, mtime) of the uploaded file

    @property
    def is_remote(self) -> bool:
        """Whether the folder is remote."""
        return self._url is not None

    def display_path(self, text: object = "") -> str:
        """Replaces the local folder in a path or message by the path that the user gave.

        Without a text, returns the user's path itself.
        """
        text = str(text) or str(self.folder)
        return text.replace(str(self.folder), self._url) if self._url else text

    def fetch(self, path: str) -> None:
        """Downloads a remote subfolder of the run, if it exists, without TensorBoard events.

        Skips partially uploaded checkpoints and corpora, and removes them if `writes`. Raises
        UserError if the download fails.
        """
        names = storage.list_folder(f"{self._url}/{path}") if self._url else []
        for name in sorted(names, key=_upload_order):
            inner = f"{path}/{name}"
            if storage.is_folder(f"{self._url}/{inner}"):
                if self._is_partial(inner):
                    if self._writes:
                        storage.remove(f"{self._url}/{inner}")
                elif name != "tensorboard":
                    self.fetch(inner)
                continue
            target = self.folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.copy(f"{self._url}/{inner}", target)
            self._sent[inner] = _stamp(target)

    def _is_partial(self, path):
        """Returns whether a remote checkpoint or corpus was not uploaded completely."""
        marker = {"checkpoint": STATE_FILE, "data": MANIFEST}.get(path.split("/")[-2])
        return marker is not None and not storage.exists(f"{self._url}/{path}/{marker}")

    def send(self, path: str) -> None:
        """Uploads the changes in a subfolder, and deletes remote files that it no longer has.

        If the storage still fails after the retries of `kbert.utils.storage`, logs a note, and the
        next call uploads the remaining files. Raises UserError for permanent errors.
        """
        try:
            self.send_all(path)
        except storage.RetryError as error:
            log(f"note: {error} The next checkpoint will upload the remaining files.")

    def send_all(self, path: str) -> None:
        """Like `send`, but raises UserError if the storage still fails after the retries."""
        if not self._url:
            return
        files = [file for file in (self.folder / path).rglob("*") if file.is_file()]
        local = {str(file.relative_to(self.folder)): file for file in files}
        local = {name: file for name, file in local.items() if _is_complete(name)}
        stamps = {name: _stamp(file) for name, file in local.items()}
        changed = [name for name in local if self._sent.get(name) != stamps[name]]
        gone = [name for name in self._sent if name not in local and name.startswith(f"{path}/")]
        folders = {dirname(name) for name in changed + gone}
        for name in [name for name in self._sent if dirname(name) in folders]:
            if basename(name) in _COMPLETION_MARKERS:  # the folder is incomplete until the end
                storage.remove(f"{self._url}/{name}")
                del self._sent[name]
                changed += [name] if name in local and name not in changed else []
        for name in gone:
            storage.remove(f"{self._url}/{name}")
            self._sent.pop(name, None)
        for folder in map(dirname, gone):
            if not (self.folder / folder).exists():
                storage.remove(f"{self._url}/{folder}")
        for name in sorted(changed, key=_upload_order):
            self._send_file(local[name], f"{self._url}/{name}")
            self._sent[name] = stamps[name]

    def _send_file(self, file, target):
        storage.make_folder(dirname(target))
        if not file.name.startswith(_GROWING_FILES):
            storage.copy(file, target)
            return
        with tempfile.TemporaryDirectory() as scratch:
            storage.copy(shutil.copy(file, scratch), target)


def _upload_order(path):
    return basename(path) in _COMPLETION_MARKERS, path


def _is_complete(path):
    """Returns whether a file is complete, according to its path: temporary names start with "."."""
    parts = pathlib.PurePath(path).parts
    return not any(part.startswith(".") for part in parts) and parts[-1] != "lock"


def _stamp(file):
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def remote_run_dir(
    output_dir: str | os.PathLike[str], subfolder: str, writes: bool
) -> Iterator[RemoteRunDir]:
    """Context manager that opens the folder of a run.

    If the folder is remote, first downloads its `subfolder`. On exit, uploads the last changes (if
    `writes`) and, unless that fails, deletes the local copy. Raises UserError if the folder
    cannot be downloaded, or the changes cannot be uploaded at the end.
    """
    if not storage.is_remote(output_dir):
        yield RemoteRunDir(None, pathlib.Path(output_dir))
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kbert-run-"))
    run_dir = RemoteRunDir(str(output_dir).rstrip("/"), folder, writes)
    uploaded = True
    try:
        run_dir.fetch(subfolder)
        uploaded = False
        try:
            yield run_dir
        finally:
            if writes:
                run_dir.send_all(subfolder)
            uploaded = True
    except UserError as error:
        kept = "" if uploaded else f" The files that were not uploaded are in {folder}."
        raise UserError(f"{run_dir.display_path(error)}{kept}") from error
    finally:
        if uploaded:
            shutil.rmtree(folder)
