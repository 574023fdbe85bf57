"""Exports a BERT for serving: python -m kbert.export --model=FOLDER --output_dir=models/bert/1"""

from kbert.data.input_checks import check_inputs
from kbert.settings import EXPORT_METHODS, ExportConfig
from kbert.tasks.names import all_built_in, check_method
from kbert.utils import program


def check(config: ExportConfig) -> None:
    """Checks the method and the inputs before TensorFlow is imported."""
    if all_built_in(config.task_module):
        check_method(config.method, EXPORT_METHODS)
    check_inputs([config.model], [config.eval_file])


def main(config: ExportConfig) -> None:
    """Runs `kbert.serving.export.export_as` with the flags."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # not needed, and TF32 would change the results
    if config.eval_file:  # one thread, as in the runtimes that the model is compared with
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    from kbert.serving.export import export_as

    export_as(config)


if __name__ == "__main__":
    program.run(main, ExportConfig, check)
