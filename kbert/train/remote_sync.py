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

# These files mark the other files of their folder as complete, so they are uploaded last.
_LAST = (STATE_FILE, MANIFEST)
# These files may grow during the upload.
_GROWING = ("metrics.jsonl", "events.")


class RemoteRunDir:
    """The folder of a run: local and, if its path has a scheme such as gs://, also remote.

    The remote folder is authoritative: a run starts by downloading it into an empty local folder.
    Only complete files are uploaded, and files that mark a folder as complete are uploaded last.

    Args:
        url: the remote path, or None for a local folder. folder: the local folder.
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

    def shown(self, text: object = "") -> str:
        """Replaces local paths in a text with the user's paths; "" returns the folder's path."""
        text = str(text) or str(self.folder)
        return text.replace(str(self.folder), self._url) if self._url else text

    def fetch(self, path: str) -> None:
        """Downloads a folder and its contents, if it exists.

        Partially uploaded checkpoints and corpora are removed; TensorBoard events are not
        downloaded.

        Args:
            path: path within the folder.

        Raises:
            UserError: the download failed.
        """
        names = storage.list_folder(f"{self._url}/{path}") if self._url else []
        for name in sorted(names, key=_travels):
            inner = f"{path}/{name}"
            if storage.is_folder(f"{self._url}/{inner}"):
                if self._is_half_sent(inner):
                    if self._writes:
                        storage.remove(f"{self._url}/{inner}")
                elif name != "tensorboard":
                    self.fetch(inner)
                continue
            target = self.folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.copy(f"{self._url}/{inner}", target)
            self._sent[inner] = _stamp(target)

    def _is_half_sent(self, path):
        last = {"checkpoint": STATE_FILE, "data": MANIFEST}.get(path.split("/")[-2])
        return last is not None and not storage.exists(f"{self._url}/{path}/{last}")

    def send(self, path: str) -> None:
        """Uploads the changes in a folder, and deletes remote files that no longer exist locally.

        If the storage keeps failing after the retries of `kbert.utils.storage`, training continues,
        and the next checkpoint uploads the remaining files.

        Args:
            path: path within the folder.

        Raises:
            UserError: the storage reports a permanent error.
        """
        try:
            self.send_all(path)
        except storage.RetryError as error:
            log(f"note: {error} The next checkpoint will upload the remaining files.")

    def send_all(self, path: str) -> None:
        """Like `send`, but raises an error if the storage keeps failing."""
        if not self._url:
            return
        files = [file for file in (self.folder / path).rglob("*") if file.is_file()]
        here = {str(file.relative_to(self.folder)): file for file in files}
        here = {name: file for name, file in here.items() if _is_whole(name)}
        stamps = {name: _stamp(file) for name, file in here.items()}
        changed = [name for name in here if self._sent.get(name) != stamps[name]]
        gone = [name for name in self._sent if name not in here and name.startswith(f"{path}/")]
        folders = {dirname(name) for name in changed + gone}
        for name in [name for name in self._sent if dirname(name) in folders]:
            if basename(name) in _LAST:  # the folder is incomplete until the upload ends
                storage.remove(f"{self._url}/{name}")
                del self._sent[name]
                changed += [name] if name in here and name not in changed else []
        for name in gone:
            storage.remove(f"{self._url}/{name}")
            self._sent.pop(name, None)
        for folder in map(dirname, gone):
            if not (self.folder / folder).exists():
                storage.remove(f"{self._url}/{folder}")
        for name in sorted(changed, key=_travels):
            self._send_file(here[name], f"{self._url}/{name}")
            self._sent[name] = stamps[name]

    def _send_file(self, file, target):
        storage.make_folder(dirname(target))
        if not file.name.startswith(_GROWING):
            storage.copy(file, target)
            return
        with tempfile.TemporaryDirectory() as scratch:
            storage.copy(shutil.copy(file, scratch), target)


def _travels(path):
    return basename(path) in _LAST, path


def _is_whole(path):
    """Whether a file is complete; temporary files have other names."""
    parts = pathlib.PurePath(path).parts
    return not any(part.startswith(".") for part in parts) and parts[-1] != "lock"


def _stamp(file):
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def remote_run_dir(
    place: str | os.PathLike[str], part: str, writes: bool
) -> Iterator[RemoteRunDir]:
    """Opens the folder of a run; a remote folder is downloaded first.

    Args:
        place: the path given by the user. part: part of the run, such as "pretrain".
        writes: whether to upload changes; False if another process uploads them.

    Raises:
        UserError: the folder cannot be downloaded, or the changes cannot be uploaded at the end.
    """
    if not storage.is_remote(place):
        yield RemoteRunDir(None, pathlib.Path(place))
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kbert-run-"))
    run_dir = RemoteRunDir(str(place).rstrip("/"), folder, writes)
    whole = True
    try:
        run_dir.fetch(part)
        whole = False
        try:
            yield run_dir
        finally:
            if writes:
                run_dir.send_all(part)
            whole = True
    except UserError as error:
        kept = "" if whole else f" The files that were not uploaded are in {folder}."
        raise UserError(f"{run_dir.shown(error)}{kept}") from error
    finally:
        if whole:
            shutil.rmtree(folder)
