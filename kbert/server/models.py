"""The served models and their versions: polls the disk, loads and unloads versions."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from google.protobuf import text_format
from tensorflow_serving.apis import get_model_status_pb2, model_pb2
from tensorflow_serving.config import model_server_config_pb2

from kbert.errors import UserError
from kbert.server.errors import RequestError, invalid
from kbert.server.input_checks import no_versions
from kbert.server.servable import Servable
from kbert.utils import storage
from kbert.utils.formats import EXPORT_FILE

log: logging.Logger = logging.getLogger("kbert.serve")
STATES: "type[get_model_status_pb2.ModelVersionStatus]" = get_model_status_pb2.ModelVersionStatus


@dataclasses.dataclass(eq=False)
class Version:
    """A version of a model. state: one of `STATES`. folder, files: as when it was loaded."""

    number: int
    folder: str = ""
    files: tuple[tuple[str, int, int], ...] = ()  # path, size, mtime
    state: int = STATES.START
    error: str = ""
    servable: Servable | None = None

    def lacks_metadata(self) -> bool:
        """Whether `kbert.json`, which belongs to an export, has arrived after the version."""
        path = f"{self.folder}/assets.extra/{EXPORT_FILE}"
        return all(path != name for name, *_ in self.files) and storage.exists(path)


class Models:
    """The configured models and their versions on disk.

    A new version is loaded beside the previous one and replaces it when it is ready; the previous
    version is unloaded after its last open request. If none of the requested versions can be
    loaded, the current ones stay available.

    Args:
        load: function from a folder to a ready Servable; called in a separate thread.
    """

    def __init__(self, load: Callable[[str], Servable]) -> None:
        self._load = load
        self._configs: dict[str, model_server_config_pb2.ModelConfig] = {}
        self._versions: dict[str, dict[int, Version]] = {}  # name -> number -> Version
        self._loading: dict[str, dict[int, Version]] = {}  # the same, not served yet
        self._failed = {}  # folder -> Version that failed to load
        self._seen = {}  # folder -> files at the last poll
        self._unloaded = False
        self._changing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "kbert-load")

    async def configure(self, configs: "Sequence[model_server_config_pb2.ModelConfig]") -> None:
        """Serves exactly these models; after an error, the old configuration stays."""
        named = {config.name: config for config in configs}
        if len(named) < len(configs) or "" in named:
            raise invalid("each model needs a unique name.")
        for config in configs:
            if not config.base_path:
                raise invalid(f"model {config.name} has no base_path.")
        async with self._change():
            versions, folders, errors = await self._loaded_versions(named, at_once=True)
            for name, error in errors.items():
                raise RequestError("UNAVAILABLE", f"model {name}: {error}")
            _check(named, versions)
            self._serve(named, versions, folders)

    async def refresh(self) -> None:
        """Polls for versions: loads new versions and unloads those that are no longer requested.

        Raises:
            UserError: the remote storage of a model fails; the other models are refreshed.
        """
        async with self._change():
            versions, folders, errors = await self._loaded_versions(self._configs, at_once=False)
            self._serve(self._configs, versions, folders)
        for error in errors.values():
            raise error

    @contextlib.asynccontextmanager
    async def _change(self):
        async with self._changing:
            try:
                if self._unloaded:
                    self._unloaded = False
                    await self._in_thread(gc.collect)  # TensorFlow's graphs refer to themselves
                yield
            finally:
                self._loading = {}

    def _serve(self, configs, new_versions, folders):
        for name, versions in self._versions.items():
            for number, version in versions.items():
                if version.servable and new_versions.get(name, {}).get(number) is not version:
                    log.info("%s: unloading version %d", name, number)
                    self._unloaded = True
        self._configs, self._versions = configs, new_versions
        for version in (v for versions in new_versions.values() for v in versions.values()):
            if version.servable:
                version.state = STATES.AVAILABLE
        for known in (self._failed, self._seen):
            for folder in known.keys() - folders:
                del known[folder]

    async def _loaded_versions(self, configs, at_once):
        """Loads the missing versions of all models.

        Returns:
            name -> number -> Version; the set of all folders; name -> UserError of the models whose
            storage failed.
        """
        result, folders, errors = {}, set(), {}
        for name, config in configs.items():
            try:
                there = await self._in_thread(_on_disk, config.base_path)
                result[name] = await self._versions_of(name, config, there, at_once)
                folders.update(there.values())
            except UserError as error:
                result[name], errors[name] = self._versions.get(name, {}), error
                folders.update(version.folder for version in result[name].values())
        return result, folders, errors

    async def _versions_of(self, name, config, there, at_once):
        """Returns number -> Version of a model, loading missing versions.

        Without `at_once`, loads only versions unchanged since the last poll, as changing folders
        may be incomplete.
        """
        before, versions = self._versions.get(name, {}), {}
        for number in sorted(_numbers_to_serve(config, there), reverse=True):
            folder, old = there[number], before.get(number)
            if old and old.servable and old.folder == folder:
                versions[number] = old
                if not await self._in_thread(old.lacks_metadata):
                    continue
            files = await self._in_thread(_stamps, folder)
            if files and (at_once or self._seen.get(folder) == files):
                version = await self._loaded(name, Version(number, folder, files))
                if version.servable or number not in versions:
                    versions[number] = version
            self._seen[folder] = files
        if not any(version.servable for version in versions.values()):
            base = config.base_path.rstrip("/")
            versions |= {
                number: version
                for number, version in before.items()
                if version.servable and version.folder.rpartition("/")[0] == base
            }
        for number in there.keys() - versions.keys():
            if number in before:
                versions[number] = Version(number, state=STATES.END)
        return versions

    async def _in_thread(self, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _loaded(self, name, version):
        """Loads the servable of a version; returns the version, with an error if it failed."""
        failed = self._failed.get(version.folder)
        if failed and failed.files == version.files:
            return failed
        version.state = STATES.LOADING
        self._loading.setdefault(name, {})[version.number] = version
        begin = time.monotonic()
        try:
            version.servable = await self._in_thread(self._load, version.folder)
        except Exception as error:
            version.state, version.error = STATES.END, str(error)
            self._failed[version.folder] = version
            known = isinstance(error, (UserError, RequestError))
            log.error("%s version %d: %s", name, version.number, error, exc_info=not known)
        else:
            self._failed.pop(version.folder, None)
            seconds, what = time.monotonic() - begin, version.servable
            log.info("%s version %d is ready (%.1f s): %s", name, version.number, seconds, what)
        return version

    def find(self, spec: "model_pb2.ModelSpec") -> tuple[int, Servable]:
        """Returns the number and the Servable that a ModelSpec selects; by default the newest."""
        available = {n: v for n, v in self._known(spec.name).items() if v.servable}
        choice = spec.WhichOneof("version_choice")
        number = spec.version.value
        if choice == "version_label":
            labels = self._configs[spec.name].version_labels
            if spec.version_label not in labels:
                raise invalid(f"model {spec.name!r} has no label {spec.version_label!r}.")
            number = labels[spec.version_label]
            what = f"version {number}"
        elif choice == "version" and (number or 0 in available):  # some clients send 0 for newest
            what = f"version {number}"
        else:
            number, what = max(available, default=None), "available version"
        if number not in available:
            raise RequestError("NOT_FOUND", f"model {spec.name!r} has no {what}.")
        return number, available[number].servable

    def status(self, spec: "model_pb2.ModelSpec") -> list[Version]:
        """Returns the Versions that a ModelSpec selects: one version, or all."""
        versions = dict(self._known(spec.name))
        for number, version in self._loading.get(spec.name, {}).items():
            if number not in versions or not versions[number].servable:
                versions[number] = version
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            return [versions[self.find(spec)[0]]]
        if choice == "version" and spec.version.value:
            if spec.version.value not in versions:
                raise RequestError(
                    "NOT_FOUND", f"{spec.name!r} has no version {spec.version.value}."
                )
            return [versions[spec.version.value]]
        return [versions[number] for number in sorted(versions, reverse=True)]

    def _known(self, name: str) -> dict[int, Version]:
        there = ", ".join(self._versions) or "none"
        if not name:
            raise invalid(f"the request names no model; available: {there}.")
        if name not in self._versions:
            raise RequestError("NOT_FOUND", f"there is no model {name!r}; available: {there}.")
        return self._versions[name]

    def __contains__(self, name: str) -> bool:
        return name in self._versions

    def served(self) -> dict[str, dict[int, Servable]]:
        """Returns the available versions: name -> number -> Servable."""
        return {
            name: {n: version.servable for n, version in versions.items() if version.servable}
            for name, versions in self._versions.items()
        }

    def available(self) -> dict[str, list[int]]:
        """Returns a dict of name -> numbers of the available versions."""
        return {name: sorted(versions) for name, versions in self.served().items()}

    def close(self) -> None:
        """Shuts down the loading thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _check(configs, versions):
    """Raises RequestError for models without an available version, and for invalid labels."""
    for name, config in configs.items():
        available = [n for n, version in versions[name].items() if version.servable]
        if not available:
            errors = [v.error for _, v in sorted(versions[name].items()) if v.error]
            reason = errors[-1] if errors else no_versions(config.base_path)
            raise RequestError("NOT_FOUND", f"model {name}: {reason}")
        for label, number in config.version_labels.items():
            if number not in available:
                raise RequestError(
                    "FAILED_PRECONDITION",
                    f"model {name}: label {label} is for version {number}, which is not available.",
                )


def read_configs(
    path: str | os.PathLike[str],
) -> "list[model_server_config_pb2.ModelConfig]":
    """Reads a TensorFlow Serving model config file; returns a list of ModelConfig.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with storage.open_stream(path) as file:
            text = file.read().decode()
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the model config file {path}: {reason}") from error
    if not config.model_config_list.config:
        raise UserError(f"{path} must have a model_config_list with at least one model.")
    return list(config.model_config_list.config)


def _on_disk(base_path: str) -> dict[int, str]:
    """Returns a dict of number -> folder of the versions on disk.

    Raises:
        UserError: remote storage fails.
    """
    result = {}
    with contextlib.suppress(OSError):  # the folder is changing; the next poll retries
        for name in storage.list_folder(base_path):
            if name.isascii() and name.isdigit() and int(name) < 2**63:
                folder = f"{base_path.rstrip('/')}/{name}"
                if storage.exists(f"{folder}/saved_model.pb"):  # or it is still being copied
                    result[int(name)] = folder
    return result


def _stamps(folder: str) -> tuple[tuple[str, int, int], ...]:
    """Returns (path, size, mtime) of all files below a folder; () if they are changing."""
    try:
        return tuple((path, *storage.stat(path)) for path in storage.files_below(folder))
    except OSError:
        return ()


def _numbers_to_serve(config, there):
    """Returns the version numbers to serve by the version policy of a ModelConfig."""
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return set(there)
    if choice == "specific":
        return set(policy.specific.versions) & set(there)
    count = policy.latest.num_versions if choice == "latest" else 0
    return set(sorted(there)[-(count or 1) :])
