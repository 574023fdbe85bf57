"""Loading of a version: remote folders are copied to this machine first."""

import contextlib
import os
import tempfile
import weakref

from kbert.errors import UserError
from kbert.server.servable import Servable
from kbert.utils import storage


def load_version(
    folder: str, backend: str = "auto", warm_up: bool = True, scratch: str | None = None
) -> Servable:
    """Returns a ready Servable of a SavedModel.

    Args:
        folder: local or remote folder of the SavedModel, such as gs://models/bert/1.
        backend: see `Servable`. warm_up: whether to compute its warmup requests.
        scratch: local folder for copies of remote folders; each is removed with its Servable.

    Raises:
        UserError: the folder cannot be loaded. RequestError: a warmup request failed.
    """
    with contextlib.ExitStack() as stack:
        local = folder
        if storage.is_remote(folder):
            local = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))
            for path in storage.files_below(folder):
                target = local + path.removeprefix(folder)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                storage.copy(path, target)
        try:
            servable = Servable(local, backend)
        except UserError as error:
            raise UserError(str(error).replace(local, folder)) from error
        if warm_up:
            servable.warm_up()
        weakref.finalize(servable, stack.pop_all().close)
    return servable
