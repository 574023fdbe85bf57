"""Distills a fine-tuned BERT: python -m kbert.distill --teacher=A --train_file=B.tsv"""

from absl import flags as absl_flags

from kbert.data.input_checks import check_inputs
from kbert.settings import DistillConfig
from kbert.utils import program


def check(config: DistillConfig) -> None:
    """Checks the inputs before TensorFlow is imported."""
    files = (config.train_file, config.eval_file, config.test_file)
    check_inputs([config.teacher, config.init_from], files)


def main(config: DistillConfig) -> None:
    """Runs `kbert.train.distill` with the flags."""
    from kbert.train import distill

    distill(config, absl_flags.FLAGS.output_dir, absl_flags.FLAGS.dry_run)


if __name__ == "__main__":
    absl_flags.DEFINE_string("output_dir", "saved_model/bert", "folder of the run")
    absl_flags.DEFINE_bool(
        "dry_run",
        False,
        "report on the examples, time three steps and print the estimated time and memory of the "
        "run, without writing anything",
    )
    program.run(main, DistillConfig, check)
