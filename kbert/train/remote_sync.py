"""A run's folder on remote storage: worked on in a local copy, sent after every checkpoint."""

import contextlib
import pathlib
import shutil
import tempfile
from posixpath import basename, dirname

from kbert.corpus.corpus import MANIFEST
from kbert.errors import UserError
from kbert.train.checkpoint import STATE_FILE
from kbert.utils import storage
from kbert.utils.logging import log

# They tell a reader that the other files of their folder are there, so they travel last.
_LAST = (STATE_FILE, MANIFEST)
# Their files grow while they are sent.
_GROWING = ("metrics.jsonl", "events.")


class RemoteRunDir:
    """The folder of a run, here and, if its path has a scheme such as gs://, there.

    What is there is the truth: a run that starts fetches it into an empty local folder. Files
    arrive whole, and those that tell that a folder is whole arrive last.

    Args:
        url: what the user named, or None if that is a local folder. folder: pathlib.Path, where to
            work. writes: whether to send what is made there; else that is somebody else's work.
    """

    def __init__(self, url, folder, writes=True):
        self.folder = folder
        self._url, self._writes = url, writes
        self._sent = {}  # path in the folder -> (size, time of change) of what is there

    @property
    def is_remote(self):
        """Whether the folder is elsewhere."""
        return self._url is not None

    def shown(self, text=""):
        """A text that names paths in the folder, as the user knows them; "" is the folder."""
        text = str(text) or str(self.folder)
        return text.replace(str(self.folder), self._url) if self._url else text

    def fetch(self, path):
        """Fetches a folder with what is in it, if it is there.

        Half-sent checkpoints and corpora are removed, events of TensorBoard left where they are.

        Args:
            path: str, in the folder.

        Raises:
            UserError: it cannot be fetched.
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

    def send(self, path):
        """Sends what has changed in a folder, and removes there what is no longer here.

        If the storage fails for longer than `kbert.utils.storage` tries, training goes on: the next
        checkpoint takes along what was left.

        Args:
            path: str, in the folder.

        Raises:
            UserError: it cannot be sent, and never will.
        """
        try:
            self.send_all(path)
        except storage.GaveUp as error:
            log(f"note: {error} The next checkpoint takes along what is left.")

    def send_all(self, path):
        """As `send`, but a storage that fails is an error."""
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
            if basename(name) in _LAST:  # what it stands for is not whole from here on
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
    """Whether a file has got its name; what is being written has another one."""
    parts = pathlib.PurePath(path).parts
    return not any(part.startswith(".") for part in parts) and parts[-1] != "lock"


def _stamp(file):
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def remote_run_dir(place, part, writes):
    """The folder of a run to work in; of a remote one, a copy of what is there.

    Args:
        place: str or path, what the user named. part: str, of the run, such as "pretrain".
        writes: whether to send what was made; else it is somebody else's work.

    Yields:
        RemoteRunDir.

    Raises:
        UserError: the folder cannot be fetched; what was made cannot be sent at the end.
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
        kept = "" if whole else f" What could not be sent is in {folder}."
        raise UserError(f"{run_dir.shown(error)}{kept}") from error
    finally:
        if whole:
            shutil.rmtree(folder)
