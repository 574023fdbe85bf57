"""The registry of tasks, and `task.json`, the file with the task of a model and its settings."""

import dataclasses
import importlib
import importlib.metadata
import inspect
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kbert.errors import UserError
from kbert.model.folder import TASK_FILE, ModelFolder
from kbert.tasks.choice import Choice
from kbert.tasks.classify import Classification
from kbert.tasks.embed import Embedding
from kbert.tasks.multilabel import MultiLabel
from kbert.tasks.names import ENTRY_POINTS, check_task_name
from kbert.tasks.pair import PairClassification
from kbert.tasks.qa import QuestionAnswering
from kbert.tasks.regress import Regression
from kbert.tasks.rerank import Reranking
from kbert.tasks.tag import Tagging
from kbert.tasks.task import BOOL, Task, int_at_least, setting_check
from kbert.utils import atomic
from kbert.utils.formats import check_format, with_format

if TYPE_CHECKING:
    from typing import TypeVar

    from kbert.config import BertConfig
    from kbert.settings.tasks import FinetuneConfig
    from kbert.tokenizer.tokenizer import BertTokenizer

    TaskClass = TypeVar("TaskClass", bound=type[Task])

BUILT_IN: tuple[type[Task], ...] = (
    *(Classification, PairClassification, Regression, MultiLabel),
    *(Tagging, QuestionAnswering, Choice, Embedding, Reranking),
)
_registered = {kind.name: kind for kind in BUILT_IN}


def register(task_class: "TaskClass") -> "TaskClass":
    """Registers a subclass of `kbert.tasks.task.Task` under its name; usable as a decorator.

    Raises:
        UserError: the class has no name or no method, or another task has the same name.
    """
    for key in ("name", "method"):
        if not isinstance(value := getattr(task_class, key), str) or not value:
            raise UserError(
                f"the task {task_class.__qualname__} has no {key}. Give it one: {key} = ..."
            )
    name = task_class.name
    other = _registered.setdefault(name, task_class)
    if (other.__module__, other.__qualname__) != (task_class.__module__, task_class.__qualname__):
        raise UserError(
            f"there are two tasks {name}: {other.__module__}.{other.__qualname__} and "
            f"{task_class.__module__}.{task_class.__qualname__}. Rename one of them."
        )
    return task_class


def load_task_module(name: str | None) -> None:
    """Imports a module and registers the tasks that it defines.

    Args:
        name: value of --task_module; None: nothing is imported.

    Raises:
        UserError: the module cannot be imported or defines no task, or a task cannot be
            registered.
    """
    if name is None:
        return
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--task_module={name} cannot be imported: {error}. Install the module, or run the "
            f"program in its folder."
        ) from error
    kinds = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Task) and kind.__module__ == module.__name__
    ]
    if not kinds:
        raise UserError(f"--task_module={name} defines no subclass of kbert.tasks.task.Task.")
    for kind in kinds:
        register(kind)


def tasks() -> dict[str, type[Task]]:
    """Returns all built-in, installed and registered tasks: dict of name -> subclass of Task.

    Raises:
        UserError: an installed task cannot be loaded or registered.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name not in _registered:
            try:
                register(point.load())
            except (ImportError, AttributeError) as error:
                raise UserError(f"cannot load the task {point.name}: {error}.") from error
    return dict(_registered)


def get_task(name: str) -> type[Task]:
    """Returns the subclass of Task with a given name.

    Raises:
        UserError: there is no such task.
    """
    if name in _registered:
        return _registered[name]
    kinds = tasks()
    check_task_name(name, kinds)
    return kinds[name]


def task_of_method(method: str) -> type[Task] | None:
    """Returns the first task with the given method, or None."""
    return next((kind for kind in tasks().values() if kind.method == method), None)


def method_of_heads(parts: Iterable[str], config: "BertConfig") -> str:
    """Returns the default method of `kbert.Predictor` for a model without `task.json`.

    Args:
        parts: names of the model's parts, such as the head "mlm".
        config: BertConfig of the model.
    """
    if config.embedding:
        return "embed"
    # Of the tasks with the same heads, the first one counts: it overwrites the others.
    heads = {tuple(kind.model_class.task_heads): kind.method for kind in reversed(BUILT_IN)}
    heads |= {("mlm",): "fill_mask", ("nsp",): "next_sentence"}
    return next((method for names, method in heads.items() if set(names) <= set(parts)), "embed")


def text_task_name(task: Task | type[Task], takes_pairs: bool) -> str:
    """Returns the name of the task for single texts or for pairs that has the endpoint of `task`.

    For example, this is "pair" for classify with `takes_pairs`. If there is no such task, returns
    the name of `task`.
    """
    kinds = [kind for kind in tasks().values() if kind.endpoint is task.endpoint]
    return next((kind.name for kind in kinds if kind.takes_pairs == takes_pairs), task.name)


def make_task(
    config: "FinetuneConfig",
    tokenizer: "BertTokenizer",
    label_names: tuple[str, ...] | None = None,
    allow_no_answer: bool = False,
) -> Task:
    """Creates the task of a FinetuneConfig.

    Args:
        config: FinetuneConfig, or a DistillConfig. For distillation, the settings that the task
            adds to FinetuneConfig are read from the teacher's `task.json`.
        tokenizer: BertTokenizer.
        label_names: tuple of str for tasks with label names, else None.
        allow_no_answer: for qa, whether questions may have no answer.

    Raises:
        UserError: the task is unknown, or the teacher's `task.json` is invalid.
    """
    kind = get_task(config.task)
    teacher = getattr(config, "teacher", None) if kind.task_specific_fields() else None
    values = read_task_settings(teacher) or {} if teacher else vars(config)
    return _set_task_specific_fields(
        kind.from_config(config, tokenizer, label_names, allow_no_answer), values
    )


def _set_task_specific_fields(task, values):
    """Sets the `task_specific_fields` of a task to `values`, or else to their defaults."""
    for name, field in task.task_specific_fields().items():
        setattr(task, name, values.get(name, field.default))
    return task


def with_task_defaults(config: "FinetuneConfig") -> "FinetuneConfig":
    """Imports `task_module`, checks the task, and sets a missing `max_seq_length` to its default.

    Returns:
        A copy of the config.

    Raises:
        UserError: the module cannot be loaded, the task is missing or unknown, or a setting is for
            other tasks.
    """
    load_task_module(config.task_module)
    kind = get_task(config.task)
    if config.class_weights and not kind.is_classification:
        names = " and ".join(n for n, other in tasks().items() if other.is_classification)
        raise UserError(f"--class_weights is for {names}; the task is {config.task}.")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for other in BUILT_IN:
        for name in set(other.flags) - set(kind.flags):
            if getattr(config, name) != defaults[name]:
                raise UserError(f"--{name} is for {other.name}; the task is {config.task}.")
    length = config.max_seq_length or kind.default_max_seq_length(config.init_from)
    return dataclasses.replace(config, max_seq_length=length)


def write_task_settings(
    folder: str | os.PathLike[str], task: Task, takes_pairs: bool = False
) -> None:
    """Writes the settings of a task to a model folder; see `save_task_settings`.

    Args:
        folder: path of an existing folder.
        task: Task of the model.
        takes_pairs: whether the training examples have a second text. If the task has
            `takes_pairs`, the file says so in any case.
    """
    settings = {"task": task.name, "max_seq_length": task.max_seq_length}
    settings["takes_pairs"] = takes_pairs or task.takes_pairs
    settings |= {
        key: getattr(task, key)
        for key in (*task.task_specific_settings, *task.task_specific_fields())
    }
    save_task_settings(folder, settings)


def save_task_settings(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Writes `task.json`, which `read_task_settings` reads, to an existing folder."""
    atomic.write_json(pathlib.Path(folder) / TASK_FILE, with_format(TASK_FILE, settings))


def read_task_settings(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the settings in `task.json` of a folder (path or ModelFolder); None if it is absent.

    Raises:
        UserError: the folder does not exist, or `task.json` is invalid or of a newer kbert.
    """
    folder = ModelFolder.of(folder)
    path = folder.path / TASK_FILE
    try:
        settings = folder.task_settings
    except UserError:
        settings = {}
    if settings is None:
        return None
    check_format(path, settings.get("format"))
    settings = {name: value for name, value in settings.items() if name != "format"}
    known = isinstance(settings.get("task"), str) and "max_seq_length" in settings
    if not known or settings["task"] not in tasks():
        hint = " If it is your own task, pass its module as --task_module." if known else ""
        raise UserError(
            f"{path} is not a file written by kbert.finetune: it must have max_seq_length and one "
            f"of the tasks {', '.join(tasks())}. Fix or remove it.{hint}"
        )
    kind = get_task(settings["task"])
    checks = {"max_seq_length": int_at_least(5), "takes_pairs": BOOL, "task": (lambda x: True, "")}
    checks |= kind.task_specific_settings | {
        n: setting_check(f) for n, f in kind.task_specific_fields().items()
    }
    for name, value in settings.items():
        fits, what = checks.get(name, (lambda value: False, "absent"))
        if not fits(value):
            raise UserError(f"{path}: {name!r} must be {what}; got {value!r}. Fix or remove it.")
    return settings


def task_from_settings(
    settings: dict[str, Any], tokenizer: "BertTokenizer", config: "BertConfig"
) -> Task:
    """Creates the task of a model folder.

    Args:
        settings: result of `read_task_settings`.
        tokenizer: BertTokenizer of the model.
        config: BertConfig of the model.
    """
    kind = get_task(settings["task"])
    others = {"task", "takes_pairs", *kind.task_specific_fields()}
    usual = {key: value for key, value in settings.items() if key not in others}
    return _set_task_specific_fields(kind.from_settings(usual, tokenizer, config), settings)
