"""Distillation: wraps a workload so that the model also learns from a teacher."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kbert.compression.distillation_objective import FIXED_SETTINGS, DistillationObjective
from kbert.compression.teacher import Teacher, check_heads, initial_layers
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.tasks.registry import (
    get_task,
    load_task_module,
    read_task_settings,
    with_task_defaults,
)
from kbert.train.cross_validation import cross_validate
from kbert.train.finetuning import Finetuning
from kbert.train.start import start_run

if TYPE_CHECKING:
    from kbert.config import BertConfig
    from kbert.model.pretrained import PretrainedModel
    from kbert.settings import DistillConfig, PretrainConfig
    from kbert.train.callbacks import Callback
    from kbert.train.distribution import Devices
    from kbert.train.remote_sync import RemoteRunDir
    from kbert.train.workers import Workers
    from kbert.train.workload import Workload


def distill(
    config: "DistillConfig",
    output_dir: str | os.PathLike[str],
    dry_run: bool = False,
    callbacks: "Sequence[Callback]" = (),
) -> dict[str, Any]:
    """Fine-tunes a student for a task, with a teacher that was trained for the same task.

    Writes the same files as `kbert.train.finetune`, to `OUTPUT_DIR/distillation/`, and resumes in
    the same way.

    Args:
        config: settings of the run.
        output_dir: the run's folder.
        dry_run, callbacks: as for `kbert.train.finetune`.

    Returns:
        The scores of the student; see `kbert.train.finetune`.

    Raises:
        SystemExit: as for `kbert.train.finetune`.
        UserError: as for `kbert.train.finetune`; or the teacher is incompatible with the student.
    """

    def run(config, folder):
        student = Finetuning(config, "distillation", "kbert.distill")
        return start_run(Distillation(student), folder, callbacks, dry_run)

    config = with_task_defaults(_with_teacher_settings(config))
    if get_task(config.task).compares_examples:
        raise UserError(
            f"kbert.distill does not support the task {config.task}, whose loss compares the "
            f"examples of a batch. Fine-tune a smaller model with kbert.finetune."
        )
    return cross_validate(config, output_dir, run)


def _with_teacher_settings(config):
    """Replaces `task` and `max_seq_length`, where they are None, by the teacher's settings."""
    load_task_module(config.task_module)
    settings = read_task_settings(config.teacher) or {}
    names = [n for n in ("task", "max_seq_length") if getattr(config, n) is None]
    return dataclasses.replace(config, **{name: settings.get(name) for name in names})


class Distillation:
    """A student's workload, with a teacher. Other attributes are read from the student's workload.

    Args:
        student: the student's workload; its config has the fields of TeacherConfig.

    Attributes:
        config, fixed, objective: see `Workload`.
        teacher: the teacher, set by `load`.
    """

    config: "PretrainConfig | DistillConfig"
    fixed: tuple[str, ...]
    objective: DistillationObjective
    teacher: Teacher

    def __init__(self, student: "Workload") -> None:
        self._student = student
        self.fixed = (*student.fixed, *FIXED_SETTINGS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)

    def load(
        self,
        state: Mapping[str, Any] | None,
        saved: pathlib.Path | None,
        run_dir: "RemoteRunDir",
        workers: "Workers",
    ) -> None:
        """Loads the teacher's config and the student's inputs; see `Workload.load`."""
        student, self._folder = self._student, ModelFolder(self.config.teacher)
        student.layers = initial_layers(self.config, self._folder.config)
        check_heads(self._folder, student.teacher_class)
        labels = self._folder.config.label_names
        student.teacher_labels = labels or tuple(map(str, range(self._folder.config.num_labels)))
        student.load(state, saved, run_dir, workers, self._check)
        self.objective = DistillationObjective(
            student.objective, self.config, self.teacher, student.soft_loss, *student.distilled_sums
        )
        self._teacher_of_checkpoint = state["data"]["teacher"] if state else None

    def _check(self, bert_config, tokenizer):
        self.teacher = Teacher(self._folder, self.config, bert_config, tokenizer)
        self._student.check_teacher(self.teacher.config, bert_config)

    def make_model(self, bert_config: "BertConfig") -> "PretrainedModel":
        """Creates the student and loads the teacher.

        Raises:
            UserError: the teacher's weights have changed since the run was started.
        """
        if self.config.attention_weight:  # attention with dropout cannot be compared
            bert_config = dataclasses.replace(bert_config, attention_probs_dropout_prob=0.0)
        model = self._student.make_model(bert_config)
        self.teacher.enable_outputs(model)
        self.teacher.load(self._student.teacher_class)
        if self._teacher_of_checkpoint not in (None, self.teacher.fingerprint):
            raise UserError(
                f"the weights of the teacher, {self.config.teacher}, have changed since the run "
                f"started. Restore them, or use another --output_dir."
            )
        return model

    def initialize_from(self, folder: str, restore: Callable[[str], None]) -> str:
        """Loads the student's weights; see `Workload.initialize_from`."""
        origin, layers = self._student.initialize_from(folder, restore), self._student.layers
        if not layers:
            return origin
        blocks = f"block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
        return f"{blocks} of the teacher, {folder}"

    def identity(self) -> dict[str, Any]:
        """Returns the student's `identity` with the teacher's fingerprint."""
        return self._student.identity() | {"teacher": self.teacher.fingerprint}

    def describe(self, devices: "Devices") -> Iterable[str]:
        """Returns lines that describe the student, the devices, the data and the teacher."""
        return [*self._student.describe(devices), self.teacher.describe()]
