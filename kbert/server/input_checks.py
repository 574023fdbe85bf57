"""Checks of a server's input that need no TensorFlow, so that errors appear immediately."""

import os
import pathlib
import resource
from typing import TYPE_CHECKING

from kbert.errors import UserError
from kbert.server.credentials import ApiKeys, Certificates
from kbert.utils import storage

if TYPE_CHECKING:
    from kbert.settings.serving import ServeConfig


OTHER_FILES = 200  # open files besides connections


def check_inputs(config: "ServeConfig") -> None:
    """Checks the models, certificates and API keys of a server.

    Raises:
        UserError: a local `model_base_path` does not exist or has no versions, `model_config_file`
            does not exist, or a certificate or an API key cannot be used.
    """
    read_certificates(config)
    read_keys(config)
    file, base = config.model_config_file, config.model_base_path
    if file and not storage.is_remote(file) and not os.path.isfile(file):
        raise UserError(f"cannot read the model config file {file}: there is no such file.")
    if not base or storage.is_remote(base):
        return
    path = pathlib.Path(base)
    if not any(path.glob("[0-9]*/saved_model.pb")):
        hint = ""
        if (path / "saved_model.pb").is_file():
            parent = path.absolute().parent
            hint = f" This folder is itself an export; use --model_base_path={parent}"
        raise UserError(f"model {config.model_name}: {no_versions(base)}{hint}")


def read_certificates(config: "ServeConfig") -> Certificates | None:
    """Returns the Certificates of a server, or None without TLS; raises UserError."""
    if not config.ssl_key:
        return None
    return Certificates(config.ssl_key, config.ssl_certificate, config.ssl_client_ca)


def read_keys(config: "ServeConfig") -> ApiKeys | None:
    """Returns the ApiKeys of a server, or None if it needs none; raises UserError."""
    return ApiKeys(config.api_key_file) if config.api_key_file else None


def raise_open_file_limit(config: "ServeConfig") -> None:
    """Raises the limit of open files as far as possible, since each connection is an open file.

    Raises:
        UserError: the limit does not allow `max_connections`.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ports = sum(map(bool, (config.port, config.rest_api_port, config.monitoring_port)))
    needed = ports * config.max_connections + OTHER_FILES
    if most != resource.RLIM_INFINITY and most < needed:
        raise UserError(
            f"--max_connections={config.max_connections} on {ports} ports needs {needed:,} open "
            f"files; the limit is {most:,} (ulimit -Hn). Use --max_connections="
            f"{max((most - OTHER_FILES) // ports, 1)}, or raise the limit."
        )


def no_versions(base_path: str) -> str:
    """Returns the error message for a folder without versions."""
    return (
        f"no versions in {base_path}; a version is an export in a folder whose name is a number, "
        f"such as {base_path}/1."
    )
