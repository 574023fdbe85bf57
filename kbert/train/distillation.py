"""Task distillation: a student is fine-tuned with a larger, fine-tuned model as its teacher."""

import tensorflow as tf

from kbert.errors import UserError
from kbert.model.weights import open_weights
from kbert.tasks.folders import MODEL_CLASSES
from kbert.tasks.labels import differing_labels
from kbert.train import teaching
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
    return start_run(Distilling, config, output_dir, Distilling.run)


class Distilling(teaching.Taught, Finetuning):
    """A run of `distill`. config: DistillConfig."""

    part, program = "distillation", "kbert.distill"
    fixed = (*Finetuning.fixed, *teaching.FIXED)

    def find(self, state):
        self.layers = teaching.start_layers(self.config)
        self.teacher_class = MODEL_CLASSES[self.config.task]
        super().find(state)

    def usual_label_names(self, examples):
        """Those of the teacher, whose outputs are of them."""
        with open_weights(self.config.teacher) as (theirs, _):
            return theirs.label_names or tuple(map(str, range(theirs.num_labels)))

    def taught(self):
        task, config = self.task, self.config

        def soft(outputs, theirs, features):
            losses = task.soft_losses(outputs, theirs, config.temperature)
            return tf.reduce_sum(losses * features["label_weights"])

        return teaching.TaughtObjective(
            self.objective, config, self.teacher, soft, loss="loss", count="count"
        )

    def check_model(self, bert_config, tokenizer):
        super().check_model(bert_config, tokenizer)
        for name, (theirs, ours) in differing_labels(self.teacher.config, self.task).items():
            raise UserError(
                f"the teacher, {self.config.teacher}, has {name} {theirs}; the student would have "
                f"{ours}. Leave out --labels, or take a teacher that has learnt this task."
            )

    def initialize_from(self, folder):
        origin = super().initialize_from(folder)
        return teaching.origin(self.layers, folder) if self.layers else origin
