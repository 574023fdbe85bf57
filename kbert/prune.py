"""Removes attention heads: python -m kbert.prune --model=A --data_file=B --output_dir=C

The model is a fine-tuned one; what it then lacks, `python -m kbert.finetune --init_from=C` learns
again, as far as it can.
"""

from kbert.settings import PruneConfig
from kbert.utils import flags, program


def main():
    """Runs `kbert.compression.head_pruning.prune` with the flags."""
    config = flags.read(PruneConfig)
    from kbert.compression.head_pruning import prune

    prune(config)


if __name__ == "__main__":
    flags.define(PruneConfig)
    program.run(main)
