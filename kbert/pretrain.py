"""Pretrains a BERT: python -m kbert.pretrain --flagfile=configs/quick.flags"""

from absl import flags as absl_flags

from kbert.corpus.input_checks import check_inputs
from kbert.settings import PretrainConfig
from kbert.utils import program
from kbert.utils.formats import find_folder


def check(config: PretrainConfig) -> None:
    """Checks the inputs before TensorFlow is imported."""
    check_inputs(config)
    for folder in filter(None, (config.init_from, config.teacher)):
        find_folder(folder)


def main(config: PretrainConfig) -> None:
    """Runs `kbert.train.pretrain` with the flags."""
    from kbert.train import pretrain

    pretrain(config, absl_flags.FLAGS.output_dir, absl_flags.FLAGS.dry_run)


if __name__ == "__main__":
    absl_flags.DEFINE_string("output_dir", "saved_model/bert", "folder of the run")
    absl_flags.DEFINE_bool(
        "dry_run",
        False,
        "time three steps, print the estimated time and memory of the run, and write only the "
        "vocabulary and the prepared text",
    )
    program.run(main, PretrainConfig, check)
