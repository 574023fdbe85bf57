"""Pretrains a BERT: python -m kbert.pretrain --flagfile=configs/quick.flags"""

from absl import flags as absl_flags

from kbert import flags, program
from kbert.config import PretrainConfig

flags.define(PretrainConfig)
absl_flags.DEFINE_string("output_dir", "saved_model/bert", "the run's folder")


def main():
    """Runs `kbert.train.train` with the flags."""
    config = flags.read(PretrainConfig)
    from kbert.train import train

    train(config, absl_flags.FLAGS.output_dir)


if __name__ == "__main__":
    program.run(main)
