"""Measures the speedup of smaller models in the forward pass of the encoder and the pooler.

    python -m benchmarks.smaller --models=RUN/finetuning/best,SMALLER --batches=1,32

In each round, every model in turn processes the same token ids for some seconds, all in one
process. Results are medians over the rounds with minimum and maximum; ratios are computed within
each round. Load from other processes is not measured.
"""

import statistics
import time

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS


def computations(folders, backend, features):
    """Yields for each folder a function from a dict of features to the pooler's output."""
    import kbert
    from kbert.inference.backends import frozen_backend

    for folder in folders:
        model = kbert.BertModel.from_pretrained(folder)

        def outputs(features, model=model):
            return {"pooled": model(features, training=False)["pooler_output"]}

        yield frozen_backend(backend, model, "smaller")(outputs, features)


def token_ids(folder, batch):
    """Returns random token ids, (batch, length) int32, except the first 1/30 of the vocabulary."""
    import kbert

    size = kbert.BertTokenizer.from_pretrained(folder).vocab_size
    return np.random.default_rng(0).integers(size // 30, size, (batch, FLAGS.length), np.int32)


def seconds_of(compute, features, least):
    """Calls `compute` for at least `least` seconds; returns the mean seconds per call."""
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < least:
        compute(features)
        count += 1
    return (time.perf_counter() - begin) / count


def main(_):
    """Runs the comparison and prints a Markdown table."""
    print("| backend | batch | model | ms per batch | speedup over the first model |")
    print("| --- | --- | --- | --- | --- |")
    for backend in FLAGS.backends:
        for batch in map(int, FLAGS.batches):
            ids = token_ids(FLAGS.models[0], batch)
            features = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            functions = list(computations(FLAGS.models, backend, features))
            for compute in functions:
                seconds_of(compute, features, 1.0)
            rounds = [
                [seconds_of(compute, features, FLAGS.round_seconds) for compute in functions]
                for _ in range(FLAGS.rounds)
            ]
            for number, folder in enumerate(FLAGS.models):
                times = [1e3 * seconds[number] for seconds in rounds]
                ratios = [seconds[0] / seconds[number] for seconds in rounds]
                print(
                    f"| {backend} | {batch} x {FLAGS.length} | {folder} | {_spread(times)} | "
                    f"{_spread(ratios)} |",
                    flush=True,
                )


def _spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    flags.DEFINE_list("models", None, "folders of weights; the others are compared with the first")
    flags.DEFINE_list("batches", ["1", "32"], "batch sizes")
    flags.DEFINE_list("backends", ["tensorflow", "openvino"], "backends of kbert.Predictor")
    flags.DEFINE_integer("length", 128, "tokens per text")
    flags.DEFINE_integer("rounds", 7, "number of rounds; each model runs once per round")
    flags.DEFINE_float("round_seconds", 2.0, "seconds per model and round")
    flags.mark_flag_as_required("models")
    app.run(main)
