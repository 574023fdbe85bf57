"""Estimates of the cost of a run: floating-point operations, memory and time."""

import resource
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.compression.teacher import Teacher
    from kbert.config import BertConfig
    from kbert.settings import PretrainConfig, TrainingConfig
    from kbert.train.trainer import Trainer

GIB = 2**30
DRY_RUN_STEPS = 3


def estimate_cost(trainer: "Trainer") -> dict[str, Any]:
    """Takes four steps, of which the last three are timed, and prints the run's estimated cost.

    Writes no files. Returns an empty dict.
    """
    batches = trainer.batches(1 + DRY_RUN_STEPS, trainer.workload.longest_batches())
    for count in (1, DRY_RUN_STEPS):  # the first call compiles
        trainer.take_steps(batches, count)
    for line in trainer.workload.describe_cost(trainer):
        log(line)
    return {}


def step_flops(
    bert: "BertConfig",
    batch_size: int,
    length: int,
    predictions: int,
    remat: bool = False,
    next_sentence: bool = True,
) -> int:
    """Returns the floating-point operations of a training step: 2 per multiply-add of matrices.

    The backward pass costs twice the forward pass; `remat` adds another forward pass of all blocks
    but the last. The last block computes keys and values at every position, and everything else
    only at the masked slots (`predictions` per example) and, for NSP, at [CLS].
    """
    blocks, rest = forward_flops(bert, length, predictions, next_sentence)
    return batch_size * (3 * (blocks + rest) + (blocks if remat else 0))


def forward_flops(
    bert: "BertConfig", length: int, predictions: int, next_sentence: bool = True
) -> tuple[int, int]:
    """Counts the floating-point operations of an example's forward pass; see `step_flops`.

    Returns two counts: for all blocks but the last; and for the last block, pooler and heads.
    """
    D, F, V = bert.hidden_size, bert.intermediate_size, bert.vocab_size
    last = bert.num_hidden_layers - 1

    def block(i, query_length):
        A = bert.block_heads(i) * bert.head_size
        return length * 4 * D * A + query_length * (4 * D * A + 4 * D * F + 4 * length * A)

    heads = predictions * (2 * D * D + 2 * D * V) + next_sentence * (2 * D * D + 4 * D)
    rest = block(last, next_sentence + predictions) + heads
    return sum(block(i, length) for i in range(last)), rest


def step_memory(
    bert: "BertConfig",
    parameters: int,
    batch_size: int,
    length: int,
    predictions: int,
    config: "TrainingConfig",
    replicas: int = 1,
    trained: int | None = None,
) -> tuple[int, int]:
    """Estimates the memory that a device needs for a training step, in bytes.

    Returns two numbers: weights, gradients and optimizer slots, in float32; and activations for the
    backward pass, logits, the gradient sum if gradients are accumulated, packed copies of the
    gradients if replicas exchange them, and 16-bit copies of the weights in mixed precision.

    Args:
        batch_size: examples in a slice of the batch.
        trained: number of trained parameters; None for all `parameters`.
    """
    D, F, V = bert.hidden_size, bert.intermediate_size, bert.vocab_size
    K, N = bert.head_size, bert.num_hidden_layers
    size = 4 if config.precision == "float32" else 2
    slots = 0 if config.optimizer == "sgd" else 2
    copies = (config.accumulation_steps > 1) + 2 * (replicas > 1) + (size == 2) / 2
    tokens = batch_size * length
    # Stored per token: query, key and value, each before and after the split into heads; the heads'
    # outputs, the projections and norms; the inner layer before and after GELU. Stored per pair of
    # tokens: attention weights before and after dropout.
    blocks = [
        tokens * size * (8 * H * K + 4 * D + 2 * F) + batch_size * H * length**2 * 2 * size
        for H in map(bert.block_heads, range(N))
    ]
    kept = max(blocks) + N * tokens * size * D if config.remat else sum(blocks)
    logits = 3 * 4 * batch_size * predictions * V
    trained = parameters if trained is None else trained
    return 4 * (parameters + (1 + slots) * trained), kept + logits + int(copies * 4 * parameters)


def teacher_memory(
    teacher: "Teacher", batch_size: int, length: int, config: "PretrainConfig"
) -> int:
    """Estimates the bytes of a teacher's weights, attention weights and hidden states."""
    bert, size = teacher.config, 4 if config.precision == "float32" else 2
    heads = sum(map(bert.block_heads, range(bert.num_hidden_layers)))
    kept = bool(config.attention_weight) * heads * length**2
    kept += bool(config.hidden_weight) * bert.num_hidden_layers * length * bert.hidden_size
    return 4 * teacher.parameters + batch_size * size * kept


def memory_line(trainer: "Trainer", batch_size: int, length: int, predictions: int) -> str:
    """Returns a log line with the estimated and the measured memory of a run that took steps."""
    config, devices, model = trainer.config, trainer.devices, trainer.model
    bert, teacher = trainer.workload.bert_config, trainer.workload.teacher
    each = max(1, batch_size // devices.replicas // config.accumulation_steps)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    state, work = step_memory(
        *(bert, model.count_params(), each, length, predictions, config),
        *(devices.replicas, trained),
    )
    if teacher:
        work += teacher_memory(teacher, each, length, config)
    return (
        f"memory per device, estimated: {(state + work) / GIB:.2f} GiB, including "
        f"{state / GIB:.2f} for weights, gradients and optimizer; {_measured_memory(devices)}"
    )


def _measured_memory(devices):
    if devices.kind == "GPU":
        names = [f"GPU:{i}" for i in range(devices.local_replicas)]
        peak = max(tf.config.experimental.get_memory_info(name)["peak"] for name in names)
        return f"peak during the three steps {peak / GIB:.2f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    return f"peak of this process so far {peak / GIB:.2f} GiB, including libraries"
