"""`ModelRunner` loads a model with the head that a method requires, and runs it."""

import functools
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack

import numpy as np

from kbert.data.bucketed_batches import EncodedExample
from kbert.errors import UserError
from kbert.inference.backends import choose_backend, frozen_backend
from kbert.inference.batch_runner import BatchRunner
from kbert.model.folder import ModelFolder
from kbert.model.models import BertModel
from kbert.model.pretrained import PretrainedModel
from kbert.model.weights.tensors import part_of, weight_shapes
from kbert.tasks.arguments import check_length
from kbert.tasks.registry import get_task, read_task_settings, task_from_settings
from kbert.tasks.task import Task
from kbert.tokenizer.tokenizer import BertTokenizer


class PredictorOptions(TypedDict, total=False):
    """Options of `Predictor.from_pretrained`; see `Predictor`."""

    batch_size: int
    advance: Callable[[int], object] | None
    backend: str
    max_seq_length: int | None


class ModelRunner:
    """Base class of `kbert.Predictor`: loads and runs the model. See there for the arguments."""

    def __init__(
        self,
        model: PretrainedModel | None,
        tokenizer: BertTokenizer,
        settings: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        advance: Callable[[int], object] | None = None,
        backend: str = "auto",
        max_seq_length: int | None = None,
    ):
        self.model: PretrainedModel | None = model
        self.tokenizer: BertTokenizer = tokenizer
        self.settings: Mapping[str, Any] | None = settings
        self.advance: Callable[[int], object] | None = advance
        self.backend: str = choose_backend(backend)
        self.folder: ModelFolder | None = None
        self._dtype: str | None = None
        self._batch_size = batch_size
        self._max_seq_length = max_seq_length
        self._runners = {}
        self._lock = threading.Lock()  # threads may call the same method concurrently

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        dtype: str | None = None,
        **options: Unpack[PredictorOptions],
    ) -> Self:
        """Creates a Predictor from a folder of weights in any format that `BertModel` reads.

        The weights are read at the first prediction, including the head that this prediction
        requires. With OpenVINO, the converted model is cached in the subfolder `openvino`, if the
        folder is writable, and converted again when the weights change.

        Args:
            folder: a path such as `RUN/finetuning/best`, the name of a model on the Hugging Face
                hub, or a ModelFolder.
            dtype: dtype policy of the model, such as "mixed_bfloat16"; None for Keras' global
                policy, float32 by default.
            **options: `batch_size`, `advance`, `backend` and `max_seq_length`, as for the class.

        Raises:
            UserError: the folder does not exist, the backend is unknown or not installed, or files
                are missing or damaged.
        """
        folder = ModelFolder.of(folder)
        settings = read_task_settings(folder)
        predictor = cls(None, folder.tokenizer, settings, **options)
        predictor.folder, predictor._dtype = folder, dtype
        folder.parts  # noqa: B018 - reads the config and the names of the weights
        return predictor

    def _read(self, model_class):
        """Reads the model from the folder; raises UserError if it lacks the head of the class."""
        folder, parts = self.folder, self.folder.parts
        of_config = {part_of(name) for name in weight_shapes(folder.config)}
        missing = set(model_class.task_heads) & of_config - parts
        if missing:
            raise UserError(
                f"{folder} has no {', '.join(sorted(missing))}, which {model_class.__name__} "
                f"requires; it has {', '.join(sorted(parts))}. Fine-tune it for the task with "
                f"kbert.finetune."
            )
        kwargs = {"dtype": self._dtype} if self._dtype else {}
        if model_class is BertModel:
            kwargs["add_pooling_layer"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about an unused missing pooler
            return model_class.from_pretrained(folder, **kwargs)

    def load(self, model_class: type[PretrainedModel]) -> PretrainedModel:
        """Returns the model as an instance of `model_class`; reads it from the folder if necessary.

        Raises:
            UserError: the folder lacks the head of the class, the model that was passed as an
                argument has another class, or the model does not support `max_seq_length`.
        """
        with self._lock:
            if self.folder is not None and not isinstance(self.model, model_class):
                self.model, self._runners = self._read(model_class), {}
        if not isinstance(self.model, model_class):
            raise UserError(
                f"the model must be a {model_class.__name__}; it is a {type(self.model).__name__}."
            )
        if self._max_seq_length is not None:
            check_length(self._max_seq_length, self.model.config)
        return self.model

    @property
    def max_seq_length(self) -> int:
        """Maximum number of tokens in a sequence, including special tokens."""
        config = (self.model or self.folder).config
        usual = config.embedding_settings.max_seq_length
        usual = usual or min(config.max_position_embeddings, 512)
        return self._max_seq_length or (self.settings or {}).get("max_seq_length", usual)

    def task(self, name: str) -> Task:
        """Returns the task `name`, with the settings of fine-tuning if it is the model's task."""
        if self.model is None:
            self.load(get_task(name).model_class)
        settings = self.settings if self.settings and self.settings["task"] == name else {}
        settings = {**settings, "task": name, "max_seq_length": self.max_seq_length}
        return task_from_settings(settings, self.tokenizer, self.model.config)

    def predictions(self, task: Task, examples: Sequence[object]) -> list[Any]:
        """Encodes examples and returns the result of `Task.predictions` for them."""
        if not examples:
            return []
        encoded = task.encode(examples)
        outputs = self.outputs(task, encoded.items, len(examples))
        return task.predictions(examples, encoded, outputs)

    def outputs(
        self, task: Task, items: Sequence[EncodedExample], texts: int
    ) -> list[dict[str, np.ndarray]]:
        """Returns the model's outputs for items of a task, as BatchRunner does.

        Args:
            task: the Task.
            items: encoded examples.
            texts: number of texts that the items encode; progress is reported in texts.
        """
        advance, done = self.advance, 0.0

        def report_progress(count):
            nonlocal done
            before, done = int(done), done + count * texts / len(items)
            advance(int(round(done, 6)) - before)

        function = functools.partial(task.forward, self.model)
        runner = self._runner(type(task).__name__, self.model, function)
        return runner(items, advance and report_progress)

    def _runner(self, kind, model, function):
        """Returns the BatchRunner of a function, which is created at the first call.

        Args:
            kind: see `frozen_backend`.
            model: the model, whose weights the backend may freeze.
            function: see `BatchRunner`.
        """
        with self._lock:
            if kind not in self._runners:
                self._runners[kind] = BatchRunner(
                    function,
                    *(self.tokenizer.pad_id, self.max_seq_length, self._batch_size),
                    frozen_backend(self.backend, model, kind, self.folder and self.folder.path),
                )
            return self._runners[kind]
