"""Estimates of the cost of a run: floating-point operations, memory and time."""

import resource
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.train.report import time_text

if TYPE_CHECKING:
    from kbert.compression.teacher import Teacher
    from kbert.config import BertConfig
    from kbert.settings import PretrainConfig
    from kbert.train.trainer import Trainer

GIB = 2**30


def step_flops(
    bert: "BertConfig", batch_size: int, length: int, predictions: int, remat: bool = False
) -> int:
    """Returns the floating-point operations of a step: 2 per multiply-add of matrix products.

    The backward pass costs twice the forward pass; `remat` adds the forward pass of all blocks but
    the last. In the last block, only keys and values are computed at every position, the rest at
    [CLS] and the predictions.

    Args:
        batch_size: B. length: L, tokens including padding. predictions: M.
    """
    blocks, rest = forward_flops(bert, length, predictions)
    return batch_size * (3 * (blocks + rest) + (blocks if remat else 0))


def forward_flops(bert: "BertConfig", length: int, predictions: int) -> tuple[int, int]:
    """Returns the operations of an example's forward pass: all blocks but the last, the rest."""
    D, F, V = bert.hidden_size, bert.intermediate_size, bert.vocab_size
    last = bert.num_hidden_layers - 1

    def block(i, query_length):
        A = bert.block_heads(i) * bert.head_size
        return length * 4 * D * A + query_length * (4 * D * A + 4 * D * F + 4 * length * A)

    heads = predictions * (2 * D * D + 2 * D * V) + 2 * D * D + 4 * D
    return sum(block(i, length) for i in range(last)), block(last, 1 + predictions) + heads


def step_memory(
    bert: "BertConfig",
    parameters: int,
    batch_size: int,
    length: int,
    predictions: int,
    config: "PretrainConfig",
    replicas: int = 1,
) -> tuple[int, int]:
    """Estimates the bytes that a device needs for a step, as (state, work).

    State: weights, gradients and optimizer slots, in float32. Work: activations for the backward
    pass, logits, the gradient sum if gradients are accumulated, packed copies if replicas exchange
    gradients, and 16-bit copies of the weights in mixed precision.

    Args:
        parameters: number of parameters. batch_size: B of one slice. length: L. predictions: M.
        replicas: number of replicas.
    """
    D, F, V = bert.hidden_size, bert.intermediate_size, bert.vocab_size
    K, N = bert.head_size, bert.num_hidden_layers
    size = 4 if config.precision == "float32" else 2
    slots = 0 if config.optimizer == "sgd" else 2
    copies = (config.accumulation_steps > 1) + 2 * (replicas > 1) + (size == 2) / 2
    tokens = batch_size * length
    # Query, key and value before and after the split into heads, context, projections and norms;
    # the inner layer before and after GELU; attention weights before and after dropout.
    blocks = [
        tokens * size * (8 * H * K + 4 * D + 2 * F) + batch_size * H * length**2 * 2 * size
        for H in map(bert.block_heads, range(N))
    ]
    kept = max(blocks) + N * tokens * size * D if config.remat else sum(blocks)
    logits = 3 * 4 * batch_size * predictions * V
    return (2 + slots) * 4 * parameters, kept + logits + int(copies * 4 * parameters)


def teacher_memory(
    teacher: "Teacher", batch_size: int, length: int, config: "PretrainConfig"
) -> int:
    """Estimates the bytes of a teacher's weights and of its compared attention and hidden states.

    Args:
        teacher: the loaded teacher. batch_size, length, config: as in `step_memory`.
    """
    bert, size = teacher.config, 4 if config.precision == "float32" else 2
    heads = sum(map(bert.block_heads, range(bert.num_hidden_layers)))
    kept = bool(config.attention_weight) * heads * length**2
    kept += bool(config.hidden_weight) * bert.num_hidden_layers * length * bert.hidden_size
    return 4 * teacher.parameters + batch_size * size * kept


def estimate_text(trainer: "Trainer") -> str:
    """Returns a report of the cost of pretraining. trainer: has already taken steps."""
    workload, config, devices = trainer.workload, trainer.config, trainer.devices
    bert, teacher, examples = workload.bert_config, workload.teacher, workload.data
    parameters, step_seconds = trainer.model.count_params(), trainer.throughput.step_seconds
    B, L, M = config.global_batch_size, config.max_seq_length, examples.max_predictions
    flops = step_flops(bert, B, L, M, config.remat)
    each = B // devices.replicas // config.accumulation_steps
    state, work = step_memory(bert, parameters, each, L, M, config, devices.replicas)
    if teacher:
        flops += B * sum(forward_flops(teacher.config, L, M))
        work += teacher_memory(teacher, each, L, config)
    epoch = examples.windows.count
    views = examples.windows.views_per_token(config.short_seq_prob)
    epochs = config.train_steps * B / epoch
    return "\n".join(
        [
            f"parameters: {parameters:,}",
            f"compute: {flops:.2e} floating-point operations per step, "
            f"{flops * config.train_steps:.2e} in total; "
            f"{flops / step_seconds / devices.replicas / 1e12:.3f} TFLOP/s per device",
            f"memory per device, estimated: {(state + work) / GIB:.2f} GiB, including "
            f"{state / GIB:.2f} for weights, gradients and optimizer; {_measured_memory(devices)}",
            f"data: {epoch / B:,.1f} steps per epoch, {epochs:,.2f} epochs; a token is seen "
            f"{epochs * views:,.1f} times",
            f"time: {step_seconds:.3f} s per step over three steps, {B * L / step_seconds:,.0f} "
            f"tokens/s with padding; {config.train_steps:,} steps take "
            f"{time_text(config.train_steps * step_seconds)} without evaluations",
        ]
    )


def _measured_memory(devices):
    if devices.kind == "GPU":
        names = [f"GPU:{i}" for i in range(devices.local_replicas)]
        peak = max(tf.config.experimental.get_memory_info(name)["peak"] for name in names)
        return f"peak during the three steps {peak / GIB:.2f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    return f"peak of this process so far {peak / GIB:.2f} GiB, including libraries"
