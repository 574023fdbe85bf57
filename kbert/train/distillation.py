"""Task distillation: a student is fine-tuned with a larger, fine-tuned model as its teacher."""

import tensorflow as tf

from kbert.errors import UserError
from kbert.model.weights import open_weights
from kbert.tasks.labels import differing_labels
from kbert.tasks.registry import get_task, with_task
from kbert.train import distillation_objective
from kbert.train.finetuning import Finetuning
from kbert.train.loop import start_run


def distill(config, output_dir):
    """Fine-tunes a student for a task, with a teacher that has learnt it.

    Writes `OUTPUT_DIR/distillation/` as `kbert.train.finetune` writes `finetuning`, and goes on
    like it.

    Args:
        config: DistillConfig. output_dir: the run's folder.

    Returns:
        dict of "eval" and "test": see `kbert.train.finetune`.

    Raises:
        UserError: as for `finetune`; and a teacher that cannot teach this student.
    """
    return start_run(DistillFinetuning, with_task(config), output_dir, DistillFinetuning.run)


class DistillFinetuning(distillation_objective.DistillMixin, Finetuning):
    """A run of `distill`. config: DistillConfig."""

    part, program = "distillation", "kbert.distill"
    fixed = (*Finetuning.fixed, *distillation_objective.FIXED)

    def find(self, state):
        self.layers = distillation_objective.start_layers(self.config)
        self.teacher_class = get_task(self.config.task).model_class
        super().find(state)

    def usual_label_names(self, examples):
        """Those of the teacher, whose outputs are of them."""
        with open_weights(self.config.teacher) as (teacher_config, _):
            return teacher_config.label_names or tuple(map(str, range(teacher_config.num_labels)))

    def make_distillation_objective(self):
        task, config = self.task, self.config

        def soft(outputs, teacher_outputs, features):
            losses = task.soft_losses(outputs, teacher_outputs, config.temperature)
            return tf.reduce_sum(losses * features["label_weights"])

        return distillation_objective.DistillationObjective(
            self.objective, config, self.teacher, soft, loss="loss", count="count"
        )

    def check_model(self, bert_config, tokenizer):
        super().check_model(bert_config, tokenizer)
        for name, (teacher_value, student_value) in differing_labels(
            self.teacher.config, self.task
        ).items():
            raise UserError(
                f"the teacher, {self.config.teacher}, has {name} {teacher_value}; the student "
                f"would have {student_value}. Leave out --label_names, or take a teacher that has "
                f"learnt this task."
            )

    def initialize_from(self, folder):
        origin = super().initialize_from(folder)
        return distillation_objective.origin(self.layers, folder) if self.layers else origin
