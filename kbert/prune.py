"""Removes attention heads: python -m kbert.prune --model=A --data_file=B --output_dir=C

The model must be fine-tuned. To recover accuracy after pruning, fine-tune it again:
`python -m kbert.finetune --init_from=C ...`
"""

from kbert.data.input_checks import check_inputs
from kbert.settings import PruneConfig
from kbert.utils import program


def check(config: PruneConfig) -> None:
    """Checks the inputs before TensorFlow is imported."""
    check_inputs([config.model], [config.data_file, config.eval_file])


def main(config: PruneConfig) -> None:
    """Runs `kbert.compression.head_pruning.prune` with the flags."""
    from kbert.compression.head_pruning import prune

    prune(config)


if __name__ == "__main__":
    program.run(main, PruneConfig, check)
