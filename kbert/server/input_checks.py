"""Checks the folders that a server reads without TensorFlow, so that errors appear immediately."""

import os
import pathlib
from typing import TYPE_CHECKING

from kbert.errors import UserError
from kbert.utils import storage

if TYPE_CHECKING:
    from kbert.settings.serving import ServeConfig


def check_models(config: "ServeConfig") -> None:
    """Checks that a local `model_base_path` has versions, and that `model_config_file` exists.

    Raises:
        UserError: the folder does not exist or has no versions, or the file does not exist.
    """
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


def no_versions(base_path: str) -> str:
    """Returns the error message for a folder without versions."""
    return (
        f"no versions in {base_path}; a version is an export in a folder whose name is a number, "
        f"such as {base_path}/1."
    )
