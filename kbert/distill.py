"""Distils a fine-tuned BERT: python -m kbert.distill --teacher=A --train_file=B.tsv"""

from absl import flags as absl_flags

from kbert import flags, program
from kbert.settings import DistillConfig


def main():
    """Runs `kbert.train.distill` with the flags; the teacher's folder says for which task."""
    from kbert.formats import find_folder
    from kbert.tasks.folders import read_task
    from kbert.train import distill

    given = absl_flags.FLAGS
    if given.teacher:
        theirs = read_task(find_folder(given.teacher)) or {}
        for name in ("task", "max_seq_length"):
            if given[name].value is None:
                given[name].value = theirs.get(name)
    distill(flags.read(DistillConfig), given.output_dir)


if __name__ == "__main__":
    flags.define(DistillConfig)
    absl_flags.DEFINE_string("output_dir", "saved_model/bert", "the run's folder")
    program.run(main)
