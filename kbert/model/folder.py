"""Model folders: a path with lazily loaded and cached contents."""

import functools
import os

from kbert.model.weights import open_weights, part_of
from kbert.utils.formats import find_folder, folder_format, read_json

TASK_FILE = "task.json"


class ModelFolder(os.PathLike):
    """A model folder in any format: config, weights, tokenizer and task settings.

    It can be passed wherever a path is expected. Its attributes are loaded once.

    Args:
        folder: path of a folder, or name of a model on the Hugging Face hub; see
            `kbert.utils.formats.find_folder`.

    Attributes:
        name: str, the path or name given by the user.
        path: pathlib.Path of the files.

    Raises:
        UserError: neither the folder nor a model of this name on the hub exists.
    """

    @classmethod
    def of(cls, folder):
        """Returns the ModelFolder of a path or name; a ModelFolder is returned as is."""
        return folder if isinstance(folder, cls) else cls(folder)

    def __init__(self, folder):
        self.name = str(folder)
        self.path = find_folder(folder)

    def __fspath__(self):
        return str(self.path)

    def __str__(self):
        return self.name

    @functools.cached_property
    def format(self):
        """One of `kbert.utils.formats.FORMATS`, or "export"."""
        return folder_format(self.path)

    @property
    def config(self):
        """BertConfig of the weights."""
        return self._contents[0]

    @property
    def shapes(self):
        """dict of kbert's weight name -> shape."""
        return self._contents[1]

    @functools.cached_property
    def parts(self):
        """Set of the parts that have weights, such as "bert", "pooler" and "mlm"."""
        return {part_of(name) for name in self.shapes}

    @property
    def has_pooler(self):
        """Whether the folder has weights of the encoder's pooler."""
        return any(name.startswith("bert/pooler/") for name in self.shapes)

    @functools.cached_property
    def _contents(self):
        with self.open_weights() as (config, weights):
            return config, dict(weights.shapes)

    def open_weights(self, **arguments):
        """Opens the weights; takes the arguments of `kbert.model.weights.open_weights`."""
        return open_weights(self.path, **arguments)

    @functools.cached_property
    def tokenizer(self):
        """BertTokenizer."""
        from kbert.tokenizer.tokenizer import BertTokenizer

        return BertTokenizer.from_pretrained(self.path)

    @functools.cached_property
    def task_settings(self):
        """Contents of kbert's `task.json`, an unvalidated dict; None if there is no such file."""
        path = self.path / TASK_FILE
        settings = read_json(path) if path.exists() else None
        return None if settings and "registered_name" in settings else settings  # KerasHub's
