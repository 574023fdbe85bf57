"""The served models and their versions: polls the disk, loads and unloads versions."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import model_server_config_pb2

from kbert.errors import UserError
from kbert.server.errors import RequestError, invalid
from kbert.server.input_checks import no_versions

if TYPE_CHECKING:
    import os

    from tensorflow_serving.apis import model_pb2

    from kbert.server.servable import Servable

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
    servable: "Servable | None" = None


class Models:
    """The configured models and their versions on disk.

    A new version is loaded beside the previous one and replaces it when it is ready; the previous
    version is unloaded after its last open request. If none of the requested versions can be
    loaded, the current ones stay available.

    Args:
        load: function from a folder to a ready Servable; called in a separate thread.
    """

    def __init__(self, load: "Callable[[str], Servable]") -> None:
        self._load = load
        self._configs: dict[str, model_server_config_pb2.ModelConfig] = {}
        self._versions: dict[str, dict[int, Version]] = {}  # name -> number -> Version
        self._failed = {}  # folder -> Version that failed to load
        self._seen = {}  # folder -> files at the last poll
        self._changing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "kbert-load")

    async def configure(self, configs: "Sequence[model_server_config_pb2.ModelConfig]") -> None:
        """Serves exactly these models; after an error, the old configuration stays.

        Args:
            configs: list of ModelConfig.

        Raises:
            RequestError: a name or a folder is missing or duplicated, no version can be served, or
                a label refers to a version that is not available.
        """
        named = {config.name: config for config in configs}
        if len(named) < len(configs) or "" in named:
            raise invalid("each model needs a unique name.")
        for config in configs:
            if not config.base_path:
                raise invalid(f"model {config.name} has no base_path.")
        async with self._changing:
            versions, folders = await self._loaded_versions(named, at_once=True)
            _check(named, versions)
            self._serve(named, versions, folders)

    async def refresh(self) -> None:
        """Polls for versions: loads new versions and unloads those that are no longer requested."""
        async with self._changing:
            versions, folders = await self._loaded_versions(self._configs, at_once=False)
            self._serve(self._configs, versions, folders)

    def _serve(self, configs, new_versions, folders):
        for name, versions in self._versions.items():
            for number, version in versions.items():
                if version.servable and new_versions.get(name, {}).get(number) is not version:
                    log.info("%s: unloading version %d", name, number)
        self._configs, self._versions = configs, new_versions
        for known in (self._failed, self._seen):
            for folder in known.keys() - folders:
                del known[folder]

    async def _loaded_versions(self, configs, at_once):
        """Returns (name -> number -> Version, set of all folders), loading missing versions.

        Without `at_once`, loads only versions unchanged since the last poll, as changing folders
        may be incomplete.
        """
        result, folders, loop = {}, set(), asyncio.get_running_loop()
        for name, config in configs.items():
            there = await loop.run_in_executor(self._thread, _on_disk, config.base_path)
            folders.update(there.values())
            before = self._versions.get(name, {})
            numbers = _numbers_to_serve(config, there)
            versions = result[name] = {}
            for number in sorted(numbers, reverse=True):
                folder, old = there[number], before.get(number)
                if old and old.servable and old.folder == folder:
                    versions[number] = old
                    continue
                files = await loop.run_in_executor(self._thread, _stamps, folder)
                if files and (at_once or self._seen.get(folder) == files):
                    versions[number] = await self._loaded(name, Version(number, folder, files))
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
        return result, folders

    async def _loaded(self, name, version):
        """Loads the servable of a version; returns the version, with an error if it failed."""
        failed = self._failed.get(version.folder)
        if failed and failed.files == version.files:
            return failed
        shown = self._versions.get(name, {})
        loading = Version(version.number, state=STATES.LOADING)  # visible, but not yet available
        is_shown = shown.setdefault(version.number, loading) is loading
        begin = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            version.servable = await loop.run_in_executor(self._thread, self._load, version.folder)
        except Exception as error:
            version.state, version.error = STATES.END, str(error)
            self._failed[version.folder] = version
            known = isinstance(error, (UserError, RequestError))
            log.error("%s version %d: %s", name, version.number, error, exc_info=not known)
        else:
            version.state = STATES.AVAILABLE
            self._failed.pop(version.folder, None)
            seconds, what = time.monotonic() - begin, version.servable
            log.info("%s version %d is ready (%.1f s): %s", name, version.number, seconds, what)
        finally:
            if is_shown:  # only `_serve` changes the versions served
                del shown[version.number]
        return version

    def find(self, spec: "model_pb2.ModelSpec") -> "tuple[int, Servable]":
        """Returns the number and the Servable that a ModelSpec selects; by default the newest.

        Raises:
            RequestError: there is no such model, version or label.
        """
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
        """Returns the Versions that a ModelSpec selects: one version, or all.

        Raises:
            RequestError: there is no such model or version.
        """
        versions = self._known(spec.name)
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

    def served(self) -> "dict[str, dict[int, Servable]]":
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
    path: "str | os.PathLike[str]",
) -> "list[model_server_config_pb2.ModelConfig]":
    """Reads a TensorFlow Serving model config file; returns a list of ModelConfig.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with tf.io.gfile.GFile(str(path)) as file:
            text = file.read()
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (tf.errors.OpError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the model config file {path}: {reason}") from error
    if not config.model_config_list.config:
        raise UserError(f"{path} must have a model_config_list with at least one model.")
    return list(config.model_config_list.config)


def _on_disk(base_path: str) -> dict[int, str]:
    """Returns a dict of number -> folder of the versions on disk."""
    result = {}
    try:
        for name in (name.rstrip("/") for name in tf.io.gfile.listdir(base_path)):
            if name.isascii() and name.isdigit() and int(name) < 2**63:
                folder = f"{base_path.rstrip('/')}/{name}"
                if tf.io.gfile.exists(f"{folder}/saved_model.pb"):  # or it is still being copied
                    result[int(name)] = folder
    except tf.errors.OpError:  # no such folder, or it is changing; the next poll retries
        pass
    return result


def _stamps(folder: str) -> tuple[tuple[str, int, int], ...]:
    """Returns (path, size, mtime) of all files below a folder; () if they are changing."""
    result = []
    try:
        for parent, _, names in tf.io.gfile.walk(folder):
            for name in sorted(names):
                file = tf.io.gfile.stat(f"{parent}/{name}")
                result.append((f"{parent}/{name}", file.length, file.mtime_nsec))
    except tf.errors.OpError:
        return ()
    return tuple(result)


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
