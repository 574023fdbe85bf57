"""Estimates input and gradient traffic, to find the bottleneck of training on many GPUs.

    python -m benchmarks.traffic --corpus=FOLDER

Measures the throughput of kbert's input pipeline on one core, with a prepared corpus, and counts
the bytes of an example and of the gradients. The numbers for GPUs and network cards are published
ones: NVIDIA's sequences per second on one A100 with its own BERT-large on TensorFlow
(DeepLearningExamples, TensorFlow2/LanguageModeling/BERT, mixed precision, batches of 312 x 128 and
40 x 512), scaled for BERT-base by the operations of a sequence, and bandwidths from data sheets.

The time of a step is the time of the computation plus the time of the all-reduce, which starts
after the last slice of a batch and does not overlap with the computation. The all-reduce is a ring
(Patarasuk and Yuan 2009): each GPU sends and receives 2 (n - 1) / n times the gradients, and so
does the network card of a host, once for all its GPUs.
"""

import itertools
import math
import os
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("corpus", None, "folder that kbert.prepare wrote", required=True)
flags.DEFINE_integer("batches", 4000, "batches to measure")

# (architecture, L): (sequences per second of an A100, batch size per GPU).
A100 = {("large", 128): (485.59, 312), ("large", 512): (96.52, 40)}
NVLINK = 300e9  # bytes per second, A100, each direction
# Bytes per second of a host with 8 GPUs, each direction.
CARDS = {"8 x 200 Gb/s": 8 * 25e9, "100 Gb/s": 12.5e9, "25 Gb/s": 3.125e9}
GPUS_PER_HOST = 8


def measure(corpus, length):
    """Returns sequences per second on one core, and the bytes of a sequence's features."""
    from kbert.corpus import Corpus
    from kbert.data.pretraining_batches import pretraining_dataset

    batch_size = (1 << 13) // length
    batches = iter(pretraining_dataset(Corpus(corpus, verify=False), batch_size, length))
    for _ in range(20):  # warmup
        features = next(batches)
    size = sum(x.numpy().nbytes for x in features.values()) / batch_size
    begin = time.perf_counter()
    for _ in range(FLAGS.batches):
        next(batches)
    return FLAGS.batches * batch_size / (time.perf_counter() - begin), size


def architecture(name, length):
    """Returns the number of parameters of a BERT in pretraining, and of operations per sequence."""
    from kbert.config import BertConfig
    from kbert.model.weights.tensors import weight_shapes
    from kbert.train.cost_estimate import step_flops

    config = BertConfig.load(name, 30522)
    shapes = weight_shapes(config)
    parts = ("bert/", "mlm/transform", "mlm/layer_norm", "mlm/output_bias", "nsp/")
    parameters = sum(math.prod(shapes[weight]) for weight in shapes if weight.startswith(parts))
    return parameters, step_flops(config, 1, length, -(-length * 15 // 100))


def main(_):
    """Measures the input pipeline and prints the table."""
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    lengths = sorted({length for _, length in A100})
    made = {length: measure(FLAGS.corpus, length) for length in lengths}
    for length, (speed, size) in made.items():
        print(f"input, one core here, L={length}: {speed:,.0f} sequences/s, {size:,.0f} bytes each")
    print(
        "\n| model, L, batch per GPU | GPUs, network per host | computation per step | all-reduce "
        "| time lost | time lost with 4 accumulation steps | input: cores per host |\n|"
        + " --- |"
        * 7
    )
    for (name, length), cards in itertools.product(
        itertools.product(("base", "large"), lengths), [None, *CARDS]
    ):
        speed, batch = A100["large", length]
        parameters, operations = architecture(name, length)
        speed *= architecture("large", length)[1] / operations
        hosts = 1 if cards is None else 8
        gpus = hosts * GPUS_PER_HOST
        seconds = batch / speed
        gradients = 2 * (gpus - 1) / gpus * parameters * 4
        summing = max(gradients / NVLINK, gradients / CARDS[cards] if cards else 0)
        cores = GPUS_PER_HOST * speed / made[length][0]
        print(
            f"| {name}, {length}, {batch} | {gpus}, {cards or 'NVLink only'} "
            f"| {seconds * 1e3:,.0f} ms | {summing * 1e3:,.0f} ms "
            f"| {summing / (seconds + summing):.0%} | {summing / (4 * seconds + summing):.0%} "
            f"| {cores:.1f} |"
        )


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    app.run(main)
