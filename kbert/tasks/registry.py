"""The tasks there are, and which of them a folder of weights is for: `task.json` beside them."""

import dataclasses
import importlib
import importlib.metadata
import inspect
import pathlib

from kbert.errors import UserError
from kbert.model.folder import TASK_FILE, ModelFolder
from kbert.tasks.choice import Choice
from kbert.tasks.classify import Classification
from kbert.tasks.multilabel import MultiLabel
from kbert.tasks.pair import PairClassification
from kbert.tasks.qa import QuestionAnswering
from kbert.tasks.regress import Regression
from kbert.tasks.tag import Tagging
from kbert.tasks.task import BOOL, Task, whole_from
from kbert.utils import atomic

ENTRY_POINTS = "kbert.tasks"  # group of the entry points of installed packages with tasks
BUILT_IN = (
    *(Classification, PairClassification, Regression, MultiLabel),
    *(Tagging, QuestionAnswering, Choice),
)
_registered = {kind.name: kind for kind in BUILT_IN}


def register(task_class):
    """Adds a subclass of `kbert.tasks.task.Task` under its name; may be used as a decorator.

    Raises:
        UserError: it has no name, or another task has it.
    """
    name = task_class.name
    if not name or not isinstance(name, str):
        raise UserError(f"the task {task_class.__qualname__} has no name. Give it one: name = ...")
    other = _registered.setdefault(name, task_class)
    if (other.__module__, other.__qualname__) != (task_class.__module__, task_class.__qualname__):
        raise UserError(
            f"there are two tasks {name}: {other.__module__}.{other.__qualname__} and "
            f"{task_class.__module__}.{task_class.__qualname__}. Rename one of them."
        )
    return task_class


def load_task_module(name):
    """Imports a module and registers the tasks that it defines. name: of --task_module, or None.

    Raises:
        UserError: it cannot be imported, or defines no task.
    """
    if name is None:
        return
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--task_module={name} cannot be imported: {error}. Install it, or run the program in "
            f"its folder."
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


def tasks():
    """dict of name -> subclass of Task: the built-in ones, those installed, those registered.

    Raises:
        UserError: an installed one cannot be loaded.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name not in _registered:
            try:
                register(point.load())
            except (ImportError, AttributeError) as error:
                raise UserError(f"cannot load the task {point.name}: {error}.") from error
    return dict(_registered)


def get_task(name):
    """The subclass of Task of a name. Raises UserError if there is none."""
    if name in _registered:
        return _registered[name]
    kinds = tasks()
    if name not in kinds:
        raise UserError(
            f"task must be one of {', '.join(kinds)}; got {name!r}. Tasks of your own: "
            f"--task_module."
        )
    return kinds[name]


def task_of_method(method):
    """The first task whose models answer a method of `kbert.Predictor`, or None."""
    return next((kind for kind in tasks().values() if kind.method == method), None)


def of_texts(task, takes_pairs):
    """The name of the task that reads texts, or pairs of texts, for the models of a task."""
    kinds = [kind for kind in tasks().values() if kind.endpoint is task.endpoint]
    return next((kind.name for kind in kinds if kind.takes_pairs == takes_pairs), task.name)


def make_task(config, tokenizer, label_names=None, allow_no_answer=False):
    """The task of a FinetuneConfig.

    Args:
        config: FinetuneConfig, or what has its fields that tasks need. tokenizer: BertTokenizer.
        label_names: tuple of str, for the tasks whose labels have names.
        allow_no_answer: qa: whether questions may have no answer.
    """
    return get_task(config.task).from_config(config, tokenizer, label_names, allow_no_answer)


def with_task(config):
    """A FinetuneConfig with the defaults of its task, whose module is imported.

    Raises:
        UserError: the task is missing or unknown, or has no class weights.
    """
    load_task_module(config.task_module)
    if not config.task:
        raise UserError(f"--task is missing: one of {', '.join(tasks())}.")
    kind = get_task(config.task)
    if config.class_weights and not kind.is_classification:
        names = " and ".join(n for n, other in tasks().items() if other.is_classification)
        raise UserError(f"--class_weights is for {names}; the task is {config.task}.")
    length = config.max_seq_length or kind.max_seq_length
    return dataclasses.replace(config, max_seq_length=length)


def write_task(folder, task, takes_pairs=False):
    """Writes what `read_task` reads, beside config and weights.

    Args:
        folder: an existing folder. task: Task.
        takes_pairs: whether a text came with a second one; those of the task "pair" always do.
    """
    settings = {"task": task.name, "max_seq_length": task.max_seq_length}
    settings["takes_pairs"] = takes_pairs or task.takes_pairs
    settings |= {key: getattr(task, key) for key in task.own_settings}
    atomic.write_json(pathlib.Path(folder) / TASK_FILE, settings)


def read_task(folder):
    """dict of the settings of the task that a folder (path or ModelFolder) is for, or None.

    Raises:
        UserError: no such folder; the file is not what `write_task` writes.
    """
    folder = ModelFolder.of(folder)
    path = folder.path / TASK_FILE
    try:
        settings = folder.task_settings
        if settings is None:
            return None
        known = isinstance(settings["task"], str) and "max_seq_length" in settings
    except (UserError, KeyError, TypeError):
        known = False
    if not known or settings["task"] not in tasks():
        hint = " A task of your own: name its module with --task_module." if known else ""
        raise UserError(
            f"{path} is not what kbert.finetune writes: it must name one of the tasks "
            f"{', '.join(tasks())}, and max_seq_length. Mend or remove it.{hint}"
        )
    checks = {"max_seq_length": whole_from(5), "takes_pairs": BOOL}
    checks |= get_task(settings["task"]).own_settings | {"task": (lambda x: True, "")}
    for name, value in settings.items():
        fits, what = checks.get(name, (lambda value: False, "absent"))
        if not fits(value):
            raise UserError(f"{path}: {name!r} must be {what}; got {value!r}. Mend or remove it.")
    return settings


def task_of(settings, tokenizer, config):
    """The task of the settings of `read_task`. config: BertConfig of the model."""
    settings = {key: value for key, value in settings.items() if key != "takes_pairs"}
    return get_task(settings.pop("task")).from_settings(settings, tokenizer, config)
