"""Model folders: access to the config, the weights, the tokenizer and the task settings."""

import contextlib
import functools
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights import Tensors, open_weights, part_of
from kbert.utils.formats import find_folder, folder_format, read_json

if TYPE_CHECKING:
    from kbert.tokenizer.tokenizer import BertTokenizer

TASK_FILE = "task.json"


class ModelFolder(os.PathLike[str]):
    """A folder of weights in any format, with the config, the tokenizer and the task settings.

    It can be passed wherever a path is accepted. The properties are read on first use and cached;
    they raise UserError if a required file is missing or damaged. The weights are not cached.

    Args:
        folder: path of a folder, or name of a model on the Hugging Face hub; see
            `kbert.utils.formats.find_folder`.
        vocab: vocabulary for the loaded weights, which must begin with the entries of the folder's
            vocabulary; None for the folder's vocabulary. The embedding of an added entry is the
            mean of the embeddings of its WordPieces.

    Attributes:
        name: the path or name that was passed in.
        path: pathlib.Path of the files.

    Raises:
        UserError: as for `find_folder`.
    """

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> Self:
        """Returns the ModelFolder of a path or a name; returns a ModelFolder unchanged."""
        return folder if isinstance(folder, cls) else cls(folder)

    def __init__(self, folder: str | os.PathLike[str], vocab: Sequence[str] | None = None):
        self.name: str = str(folder)
        self._vocab = vocab
        self.path: pathlib.Path = find_folder(folder)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def format(self) -> str:
        """One of `kbert.utils.formats.FORMATS`, or "export"."""
        return folder_format(self.path)

    @property
    def config(self) -> BertConfig:
        """The config of the weights."""
        return self._contents[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, a dict from kbert's names."""
        return self._contents[1]

    @functools.cached_property
    def parts(self) -> set[str]:
        """Names of the parts that have weights, such as "bert/encoder", "bert/pooler", "mlm"."""
        return {part_of(name) for name in self.shapes}

    @functools.cached_property
    def _contents(self):
        with self.open_weights() as (config, weights):
            return config, dict(weights.shapes)

    def open_weights(
        self, **arguments: object
    ) -> contextlib.AbstractContextManager[tuple[BertConfig, Tensors]]:
        """Opens the weights; arguments and errors as for `kbert.model.weights.open_weights`.

        If the vocabulary has more entries than the word embeddings have rows, adds rows and, unless
        `vocab` was given, warns. Raises UserError if `vocab` does not begin with the folder's
        vocabulary.
        """
        return open_weights(self.path, **{"new_entries": self._new_entries, **arguments})

    def _new_entries(self, rows):
        """Returns a dict of the id of each entry without a row -> the ids of its WordPieces."""
        from kbert.tokenizer.files import has_tokenizer, read_tokenizer
        from kbert.tokenizer.vocab import split_new_entries

        vocab, own = self._vocab, []
        if has_tokenizer(self.path):
            with contextlib.suppress(UserError):  # `tokenizer` raises it again
                own = read_tokenizer(self.path)[0]
        if vocab is not None and own:
            if own != vocab[: len(own)]:
                raise UserError(f"the vocabulary does not begin with the vocabulary of {self}.")
            return split_new_entries(vocab, len(own))
        if len(own) > rows:
            message = f"the vocabulary has {len(own):,} entries, the word embeddings only {rows:,}"
            warnings.warn(f"{self.name}: {message} rows; adding rows.", stacklevel=6)
        return split_new_entries(own, rows)

    @functools.cached_property
    def tokenizer(self) -> "BertTokenizer":
        """The tokenizer of the folder."""
        from kbert.tokenizer.tokenizer import BertTokenizer

        return BertTokenizer.from_pretrained(self.path)

    @functools.cached_property
    def task_settings(self) -> dict[str, Any] | None:
        """Contents of kbert's `task.json`, not validated, or None if there is no such file."""
        path = self.path / TASK_FILE
        settings = read_json(path) if path.exists() else None
        is_keras_hub = settings and "registered_name" in settings  # KerasHub's own task.json
        return None if is_keras_hub else settings
