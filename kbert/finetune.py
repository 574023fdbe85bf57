"""Fine-tunes a BERT: python -m kbert.finetune --task=classify --init_from=A --train_file=B.tsv"""

from absl import flags as absl_flags

from kbert.settings import FinetuneConfig
from kbert.utils import flags, program


def main():
    """Runs `kbert.train.finetune` with the flags."""
    config = flags.read(FinetuneConfig)
    from kbert.train import finetune

    finetune(config, absl_flags.FLAGS.output_dir)


if __name__ == "__main__":
    flags.define(FinetuneConfig)
    absl_flags.DEFINE_string("output_dir", "saved_model/bert", "the run's folder")
    program.run(main)
