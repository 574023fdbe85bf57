"""Fine-tunes a BERT: python -m kbert.finetune --task=classify --init_from=A --train_file=B.tsv"""

from absl import flags as absl_flags

from kbert.data.input_checks import check_inputs
from kbert.settings import FinetuneConfig
from kbert.tasks.names import check_task_name
from kbert.utils import program


def check(config: FinetuneConfig) -> None:
    """Checks the task and the inputs before TensorFlow is imported."""
    if not config.task_module:
        check_task_name(config.task)
    check_inputs([config.init_from], [config.train_file, config.eval_file, config.test_file])


def config_class(task_module: str, task: str) -> type[FinetuneConfig]:
    """Returns FinetuneConfig, or its subclass with the settings of a task."""
    from kbert.tasks.registry import get_task, load_task_module

    load_task_module(task_module)
    return get_task(task).config_class


def main(config: FinetuneConfig) -> None:
    """Runs `kbert.train.finetune` with the flags."""
    from kbert.train import finetune

    finetune(config, absl_flags.FLAGS.output_dir, absl_flags.FLAGS.dry_run)


if __name__ == "__main__":
    absl_flags.DEFINE_string("output_dir", "saved_model/bert", "folder of the run")
    absl_flags.DEFINE_bool(
        "dry_run",
        False,
        "report on the examples, time three steps and print the estimated time and memory of the "
        "run, without writing anything",
    )
    program.run(main, FinetuneConfig, check, config_class)
