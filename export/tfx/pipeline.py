"""Trains a classifier on CSV files and pushes it to TensorFlow Serving, with TFX on this machine.

    python export/tfx/pipeline.py --data=reviews --weights=saved_model/quick/pretrain/final \\
        --label_names=negative,positive --root=saved_model/tfx --serving=models/bert

ExampleGen -> StatisticsGen -> SchemaGen -> ExampleValidator -> Transform -> Trainer -> Evaluator ->
Pusher. A model that reaches --min_accuracy, and the accuracy of the last pushed model if there is
one, is pushed to SERVING/VERSION, where TensorFlow Serving finds it. The exit status is 0 if the
model was pushed, 1 if not, and 2 for invalid input.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import logging

from kbert.errors import UserError
from kbert.utils import program
from kbert.utils.formats import find_folder

if TYPE_CHECKING:
    import os

    import tensorflow_model_analysis as tfma
    from tfx import v1 as tfx

MODULE: pathlib.Path = pathlib.Path(__file__).absolute().with_name("bert_module.py")
SPLITS = ("train", "eval")


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Trains, evaluates and pushes a BERT with TFX.")
    add = parser.add_argument
    columns = "with the columns text and label (0, 1, ...)"
    add("--data", required=True, help=f"folder of train*.csv and eval*.csv, {columns}")
    add("--weights", required=True, help="folder of a BERT, in any format that kbert reads")
    add("--root", required=True, help="folder for the outputs of the components and their metadata")
    add("--serving", required=True, help="folder of versions that TensorFlow Serving polls")
    add("--label_names", default="negative,positive", help="names of the labels 0, 1, ...")
    add("--takes_pairs", action="store_true", help="the data has a second text, text_pair")
    add("--train_steps", type=int, default=1000)
    add("--batch_size", type=int, default=32)
    add("--learning_rate", type=float, default=5e-5)
    add("--max_seq_length", type=int, default=128, help="maximum length in tokens")
    add("--seed", type=int, default=0)
    add("--min_accuracy", type=float, default=0.7, help="minimum accuracy of a model to push")
    return parser.parse_args()


def custom_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the `custom_config` of `bert_module`."""
    names = ("takes_pairs", "max_seq_length", "batch_size", "learning_rate", "seed")
    weights = str(find_folder(arguments.weights).absolute())
    labels = arguments.label_names.split(",")
    return {"weights": weights, "label_names": labels} | {n: getattr(arguments, n) for n in names}


def check(arguments: argparse.Namespace) -> None:
    """Checks the arguments before the pipeline runs.

    Raises:
        UserError: files or folders are missing, or a setting is invalid.
    """
    import bert_module

    for split in SPLITS:
        if not any(pathlib.Path(arguments.data).glob(f"{split}*.csv")):
            raise UserError(f"{arguments.data} has no {split}*.csv.")
    bert_module.check(custom_config(arguments))
    if arguments.train_steps < 1:
        raise UserError(f"--train_steps must be at least 1; got {arguments.train_steps}.")
    if not 0 <= arguments.min_accuracy <= 1:
        raise UserError(f"--min_accuracy must be 0 to 1; got {arguments.min_accuracy}.")


def eval_config(min_accuracy: float) -> "tfma.EvalConfig":
    """Returns the config of Evaluator: metrics of all examples and by label, and thresholds.

    Args:
        min_accuracy: minimum accuracy of a model that is pushed.
    """
    import tensorflow_model_analysis as tfma

    threshold = tfma.MetricThreshold(
        value_threshold=tfma.GenericValueThreshold(lower_bound={"value": min_accuracy}),
        change_threshold=tfma.GenericChangeThreshold(  # relative to the last blessed model
            direction=tfma.MetricDirection.HIGHER_IS_BETTER, absolute={"value": -1e-10}
        ),
    )
    accuracy = tfma.MetricConfig(class_name="SparseCategoricalAccuracy", threshold=threshold)
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(
                signature_name="from_examples", label_key="label", prediction_key="probabilities"
            )
        ],
        slicing_specs=[tfma.SlicingSpec(), tfma.SlicingSpec(feature_keys=["label"])],
        metrics_specs=[
            tfma.MetricsSpec(metrics=[accuracy, tfma.MetricConfig(class_name="ExampleCount")])
        ],
    )


def make_pipeline(arguments: argparse.Namespace) -> "tfx.dsl.Pipeline":
    """Creates the pipeline."""
    from tfx import v1 as tfx

    components, proto, config = tfx.components, tfx.proto, custom_config(arguments)
    splits = [proto.Input.Split(name=split, pattern=f"{split}*.csv") for split in SPLITS]
    examples = components.CsvExampleGen(
        input_base=str(pathlib.Path(arguments.data).absolute()),
        input_config=proto.Input(splits=splits),
    )
    statistics = components.StatisticsGen(examples=examples.outputs["examples"])
    schema = components.SchemaGen(statistics=statistics.outputs["statistics"])
    validator = components.ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    transform = components.Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        module_file=str(MODULE),
        custom_config=config,
    )
    trainer = components.Trainer(
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        module_file=str(MODULE),
        train_args=proto.TrainArgs(num_steps=arguments.train_steps),
        eval_args=proto.EvalArgs(),
        custom_config=config,
    )
    blessed = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id("latest_blessed_model")
    evaluator = components.Evaluator(
        examples=examples.outputs["examples"],
        model=trainer.outputs["model"],
        baseline_model=blessed.outputs["model"],
        eval_config=eval_config(arguments.min_accuracy),
    )
    destination = proto.PushDestination.Filesystem(
        base_directory=str(pathlib.Path(arguments.serving).absolute())
    )
    pusher = components.Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=proto.PushDestination(filesystem=destination),
    )
    root = pathlib.Path(arguments.root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    return tfx.dsl.Pipeline(
        pipeline_name="bert",
        pipeline_root=str(root),
        components=[
            *(examples, statistics, schema, validator, transform, trainer),
            *(blessed, evaluator, pusher),
        ],
        enable_cache=False,  # the folder of weights may change under the same name
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(root / "metadata.db")
        ),
    )


def newest(folder: "str | os.PathLike[str]") -> pathlib.Path | None:
    """Returns the subfolder whose name is the highest number, or None."""
    numbered = [path for path in pathlib.Path(folder).glob("*") if path.name.isdigit()]
    return max(numbered, key=lambda path: int(path.name), default=None)


def accuracies(folder: "str | os.PathLike[str]") -> Iterator[str]:
    """Yields the accuracy of all examples and of each label, as text.

    Args:
        folder: evaluation written by Evaluator.
    """
    import tensorflow_model_analysis as tfma

    for key, metrics in tfma.load_eval_result(str(folder)).slicing_metrics:
        values = metrics[""][""]
        accuracy = values["sparse_categorical_accuracy"]["doubleValue"]
        count = int(values["example_count"]["doubleValue"])
        slice_name = ", ".join(f"{name} {value}" for name, value in key) or "all"
        yield f"{slice_name}: accuracy {accuracy:.4f} of {count:,} examples"


def run(arguments: argparse.Namespace) -> bool:
    """Runs the pipeline and prints the result; returns whether the model was pushed.

    Raises:
        UserError: tfx cannot be imported, or the input is invalid.
    """
    program.import_tensorflow()
    check(arguments)
    try:
        from tfx import v1 as tfx
    except ImportError as error:
        message = f"tfx cannot be imported ({error}); see docs/serving.md for its requirements."
        raise UserError(message) from error
    logging.set_verbosity(logging.ERROR)  # the metadata store logs a warning for every query
    before = newest(arguments.serving)
    tfx.orchestration.LocalDagRunner().run(make_pipeline(arguments))
    evaluation = newest(pathlib.Path(arguments.root) / "Evaluator" / "evaluation")
    for line in sorted(accuracies(evaluation)):
        print(line)
    pushed = newest(arguments.serving)
    if pushed == before:
        print(f"not pushed: the model did not pass the evaluation; see {evaluation}")
    else:
        print(f"pushed: {pushed}")
    return pushed != before


def main() -> int:
    """Runs the program; returns its exit status."""
    arguments = parse_arguments()
    try:
        return 0 if run(arguments) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
