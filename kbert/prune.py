"""Removes attention heads: python -m kbert.prune --model=A --data_file=B --output_dir=C

The model is a fine-tuned one; what it then lacks, `python -m kbert.finetune --init_from=C` learns
again, as far as it can.
"""

from kbert.data.records import check_inputs
from kbert.settings import PruneConfig
from kbert.utils import program


def check(config):
    """Checks the inputs before TensorFlow is imported."""
    check_inputs([config.model], [config.data_file, config.eval_file])


def main(config):
    """Runs `kbert.compression.head_pruning.prune` with the flags."""
    from kbert.compression.head_pruning import prune

    prune(config)


if __name__ == "__main__":
    program.run(main, PruneConfig, check)
