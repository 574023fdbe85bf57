"""Folders of weights: opened once, read when something is asked for, and passed on."""

import functools
import os

from kbert.model.weights import open_weights, part_of
from kbert.utils.formats import find_folder, folder_format, read_json

TASK_FILE = "task.json"


class ModelFolder(os.PathLike):
    """A folder of weights in any format: config, weights, tokenizer and settings of its task.

    It stands for the folder's path wherever one is taken. What it returns is read once.

    Args:
        folder: path of a folder, or name of a model on the Hugging Face hub; see
            `kbert.utils.formats.find_folder`.

    Attributes:
        name: str, what the user named. path: pathlib.Path of the files.

    Raises:
        UserError: there is no such folder, nor such a model on the hub.
    """

    @classmethod
    def of(cls, folder):
        """The ModelFolder of a path or a name; a ModelFolder itself."""
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
        """dict of kbert's name -> shape of the weights."""
        return self._contents[1]

    @functools.cached_property
    def parts(self):
        """Set of the parts that have weights, such as "bert/encoder", "bert/pooler" and "mlm"."""
        return {part_of(name) for name in self.shapes}

    @functools.cached_property
    def _contents(self):
        with self.open_weights() as (config, weights):
            return config, dict(weights.shapes)

    def open_weights(self, **arguments):
        """Opens the weights: see `kbert.model.weights.open_weights`, also for the arguments."""
        return open_weights(self.path, **arguments)

    @functools.cached_property
    def tokenizer(self):
        """BertTokenizer."""
        from kbert.tokenizer.tokenizer import BertTokenizer

        return BertTokenizer.from_pretrained(self.path)

    @functools.cached_property
    def task_settings(self):
        """What `task.json` says, a dict that nobody has checked; None without one of kbert's."""
        path = self.path / TASK_FILE
        settings = read_json(path) if path.exists() else None
        return None if settings and "registered_name" in settings else settings  # KerasHub's
