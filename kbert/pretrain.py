"""Pretrains a BERT: python -m kbert.pretrain --flagfile=configs/quick.flags"""

from absl import flags as absl_flags

from kbert.settings import PretrainConfig
from kbert.utils import flags, program

flags.define(PretrainConfig)
absl_flags.DEFINE_string("output_dir", "saved_model/bert", "the run's folder")
absl_flags.DEFINE_bool("dry_run", False, "say what the run would take, after three steps of it")


def main():
    """Runs `kbert.train.pretrain` with the flags."""
    config = flags.read(PretrainConfig)
    from kbert.train import pretrain

    pretrain(config, absl_flags.FLAGS.output_dir, absl_flags.FLAGS.dry_run)


if __name__ == "__main__":
    program.run(main)
