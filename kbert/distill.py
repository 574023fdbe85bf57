"""Distils a fine-tuned BERT: python -m kbert.distill --teacher=A --train_file=B.tsv"""

from absl import flags as absl_flags

from kbert.settings import DistillConfig
from kbert.utils import flags, program


def main():
    """Runs `kbert.train.distill` with the flags; the teacher's folder says for which task."""
    from kbert.tasks.registry import load_task_module, read_task
    from kbert.train import distill

    given = absl_flags.FLAGS
    load_task_module(given.task_module)
    if given.teacher:
        teacher_task = read_task(given.teacher) or {}
        for name in ("task", "max_seq_length"):
            if given[name].value is None:
                given[name].value = teacher_task.get(name)
    distill(flags.read(DistillConfig), given.output_dir)


if __name__ == "__main__":
    flags.define(DistillConfig)
    absl_flags.DEFINE_string("output_dir", "saved_model/bert", "the run's folder")
    program.run(main)
