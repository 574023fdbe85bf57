"""Which task a folder of weights is for: `task.json` beside them."""

import pathlib

from kbert.errors import UserError
from kbert.model.folder import TASK_FILE, ModelFolder
from kbert.tasks.spans import QuestionAnswering, Tagging
from kbert.tasks.tasks import Choice, Classification, MultiLabel, Regression
from kbert.utils import atomic

_CLASSES = {
    "classify": Classification,
    "pair": Classification,
    "regress": Regression,
    "multilabel": MultiLabel,
    "tag": Tagging,
    "qa": QuestionAnswering,
    "choice": Choice,
}
MODEL_CLASSES = {name: kind.model_class for name, kind in _CLASSES.items()}
LABELLED_TASKS = ("classify", "pair", "multilabel", "tag")
_ANSWERS = ("doc_stride", "max_query_length", "max_answer_length", "null_threshold")


def make_task(config, tokenizer, label_names=None, allow_no_answer=False):
    """The task of a FinetuneConfig.

    Args:
        config: FinetuneConfig, or what has its fields that tasks need. tokenizer: BertTokenizer.
        label_names: tuple of str, for the tasks in `LABELLED_TASKS`.
        allow_no_answer: qa: whether questions may have no answer.
    """
    if config.task == "qa":
        settings = {name: getattr(config, name) for name in _ANSWERS}
        settings["null_threshold"] = settings["null_threshold"] or 0.0
        return QuestionAnswering(
            tokenizer, config.max_seq_length, allow_no_answer=allow_no_answer, **settings
        )
    return _CLASSES[config.task](tokenizer, label_names, config.max_seq_length)


def write_task(folder, task, name, takes_pairs=False):
    """Writes what `read_task` reads, beside config and weights.

    Args:
        folder: an existing folder. task: Task. name: one of `kbert.settings.TASKS`.
        takes_pairs: whether a text came with a second one; those of the task "pair" always do.
    """
    takes_pairs = takes_pairs or name == "pair"
    settings = {"task": name, "max_seq_length": task.max_seq_length, "takes_pairs": takes_pairs}
    if name == "qa":
        settings |= {key: getattr(task, key) for key in (*_ANSWERS, "allow_no_answer")}
    atomic.write_json(pathlib.Path(folder) / TASK_FILE, settings)


def read_task(folder):
    """dict of the settings of the task that a folder was fine-tuned for, or None.

    Args:
        folder: path or ModelFolder.

    Raises:
        UserError: no such folder; the file is not what `write_task` writes.
    """
    folder = ModelFolder.of(folder)
    path = folder.path / TASK_FILE
    try:
        settings = folder.task_settings
        if settings is None:
            return None
        known = settings["task"] in _CLASSES and "max_seq_length" in settings
    except (UserError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(
            f"{path} is not what kbert.finetune writes: it must name one of the tasks "
            f"{', '.join(_CLASSES)}, and max_seq_length. Mend or remove it."
        )
    for name, value in settings.items():
        fits, what = _SETTINGS.get(name, (lambda value: False, "absent"))
        if not fits(value):
            raise UserError(f"{path}: {name!r} must be {what}; got {value!r}. Mend or remove it.")
    return settings


def _at_least(least):
    return lambda x: type(x) is int and least <= x < 2**31, f"a whole number from {least}"


_BOOL = (lambda x: isinstance(x, bool), "true or false")
_SETTINGS = {
    "task": (lambda x: x in _CLASSES, f"one of {', '.join(_CLASSES)}"),
    "max_seq_length": _at_least(5),
    "takes_pairs": _BOOL,
    "doc_stride": _at_least(1),
    "max_query_length": _at_least(1),
    "max_answer_length": _at_least(1),
    "null_threshold": (lambda x: type(x) in (int, float) and abs(x) < 1e30, "a finite number"),
    "allow_no_answer": _BOOL,
}


def task_of(settings, tokenizer, config):
    """The task of the settings of `read_task`. config: BertConfig of the model."""
    settings = {key: value for key, value in settings.items() if key != "takes_pairs"}
    name = settings.pop("task")
    if name == "qa":
        return QuestionAnswering(tokenizer, **settings)
    names = config.label_names or tuple(str(i) for i in range(config.num_labels))
    return _CLASSES[name](tokenizer, names, settings["max_seq_length"])
