"""Distillation: any workload, learnt from a teacher besides."""

import dataclasses

from kbert.compression.distillation_objective import FIXED, DistillationObjective
from kbert.compression.teacher import Teacher, check_heads, start_layers
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.tasks.registry import load_task_module, read_task, with_task
from kbert.train.finetuning import Finetuning
from kbert.train.start import start_run


def distill(config, output_dir, callbacks=()):
    """Fine-tunes a student for a task, with a teacher that has learnt it.

    Writes `OUTPUT_DIR/distillation/` as `kbert.train.finetune` writes `finetuning`, and goes on
    like it.

    Args:
        config: DistillConfig. output_dir: the run's folder.
        callbacks: `kbert.train.Callback` objects, called after those of every run.

    Returns:
        dict of "eval" and "test": see `kbert.train.finetune`.

    Raises:
        UserError: as for `finetune`; and a teacher that cannot teach this student.
    """
    student = Finetuning(with_task(_of_teacher(config)), "distillation", "kbert.distill")
    return start_run(Distillation(student), output_dir, callbacks)


def _of_teacher(config):
    """A DistillConfig with the task and the length of the teacher, where it has none."""
    load_task_module(config.task_module)
    settings = read_task(config.teacher) or {}
    names = [n for n in ("task", "max_seq_length") if getattr(config, n) is None]
    return dataclasses.replace(config, **{name: settings.get(name) for name in names})


class Distillation:
    """A workload of a student and its teacher; what is not said here is as in the student's.

    Args:
        student: `kbert.train.workload.Workload`, whose config has the fields of TeacherConfig.

    Attributes:
        teacher: `kbert.compression.teacher.Teacher`, set by `load`.
    """

    def __init__(self, student):
        self._student, self.config = student, student.config
        self.fixed = (*student.fixed, *FIXED)

    def __getattr__(self, name):
        return getattr(self._student, name)

    def load(self, state, saved, run_dir, workers):
        student, self._folder = self._student, ModelFolder(self.config.teacher)
        student.layers = start_layers(self.config, self._folder.config)
        check_heads(self._folder, student.teacher_class)
        labels = self._folder.config.label_names
        student.teacher_labels = labels or tuple(map(str, range(self._folder.config.num_labels)))
        student.load(state, saved, run_dir, workers, self._check)
        self.objective = DistillationObjective(
            student.objective, self.config, self.teacher, student.soft_loss, *student.taught_sums
        )
        self._teacher_of_checkpoint = state["data"]["teacher"] if state else None

    def _check(self, bert_config, tokenizer):
        self.teacher = Teacher(self._folder, self.config, bert_config, tokenizer)
        self._student.check_teacher(self.teacher.config, bert_config)

    def make_model(self, bert_config):
        if self.config.attention_weight:  # dropped attention says nothing about what was there
            bert_config = dataclasses.replace(bert_config, attention_probs_dropout_prob=0.0)
        model = self._student.make_model(bert_config)
        self.teacher.show(model)
        self.teacher.load(self._student.teacher_class)
        if self._teacher_of_checkpoint not in (None, self.teacher.fingerprint):
            raise UserError(
                f"the weights of the teacher, {self.config.teacher}, are not those that the run "
                f"has learnt from so far. Put them back, or take another --output_dir."
            )
        return model

    def initialize_from(self, folder, restore):
        origin, layers = self._student.initialize_from(folder, restore), self._student.layers
        if not layers:
            return origin
        blocks = f"block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
        return f"{blocks} of the teacher, {folder}"

    def identity(self):
        return self._student.identity() | {"teacher": self.teacher.fingerprint}

    def describe(self, devices):
        return [*self._student.describe(devices), self.teacher.describe()]
