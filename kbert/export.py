"""Exports for serving: python -m kbert.export --model=FOLDER --output_dir=models/bert/1"""

from kbert.settings import ExportConfig
from kbert.utils import flags, program


def main():
    """Runs `kbert.serving.export.export_as` with the flags."""
    config = flags.read(ExportConfig)
    tf = program.import_tensorflow()
    tf.config.set_visible_devices([], "GPU")  # it needs none, nor TF32
    if config.eval_file:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # as the runtimes it is timed with
        tf.config.threading.set_inter_op_parallelism_threads(1)
    from kbert.serving.export import export_as

    export_as(config)


if __name__ == "__main__":
    flags.define(ExportConfig)
    program.run(main)
