"""Prunes the least important attention heads of a fine-tuned model.

Source: Michel, Levy and Neubig 2019 (arXiv:1905.10650), section 4.1.
"""

import contextlib
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.data.bucketed_batches import BucketedBatches, EncodedExample
from kbert.errors import UserError
from kbert.fields import shared_settings
from kbert.inference.evaluation import evaluate, load_fine_tuned
from kbert.model.weights import remove_heads, write_weights
from kbert.settings import EvaluateConfig, ExampleConfig, PruneConfig
from kbert.tasks.registry import write_task_settings
from kbert.utils import atomic, storage
from kbert.utils.locks import target_lock

if TYPE_CHECKING:
    from kbert.model.pretrained import PretrainedModel
    from kbert.tasks.task import Task

RESULT_FILE = "prune.json"


def prune(config: PruneConfig, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Removes the least important attention heads of a fine-tuned model and writes the result.

    The folder is written atomically, in kbert's own format, with the same files as after
    `kbert.finetune` (config, weights, tokenizer, task) and the returned dict as `prune.json`.

    Args:
        config: settings of the program.
        report: called with lines of text.

    Returns:
        dict of `removed`, the indices of the removed heads of each layer; `importance` of all heads
        by layer (see `head_importance`); `model`, `data_file` and `examples`, the number of
        examples; and dicts with the keys `before` and `after`: `heads` (by layer), `parameters`,
        `bytes` (in float32) and, with an `eval_file`, `scores`.

    Raises:
        UserError: the model or the examples cannot be used, the task is not supported (such as
            embed), `prune_fraction` of the heads cannot be removed, or the output folder is not
            empty, in use or cannot be written.
    """
    target = pathlib.Path(config.output_dir)
    storage.check_output_folder_is_free(target)
    with target_lock(target):
        predictor, task, examples = load_fine_tuned(config, config.data_file, report=report)
        if task.compares_examples:
            raise UserError(
                f"kbert.prune does not support the task {task.name}, whose loss compares the "
                f"examples of a batch."
            )
        examples = task.checked_for_training(examples, config.skip_bad_lines, report)
        bert = predictor.model.config
        heads = [bert.block_heads(i) for i in range(bert.num_hidden_layers)]
        # Checks the fraction before the slow steps.
        least_important([[0.0] * count for count in heads], config.prune_fraction)
        items = task.encode(examples).items
        report(f"{config.model}: {task.name}, {len(examples):,} examples of {config.data_file}")
        scores = {"before": _scores(config, config.model)} if config.eval_file else None
        importance = head_importance(predictor.model, task, items, config.batch_size)
        removed = least_important(importance, config.prune_fraction)
        kept = [
            [head for head in range(len(layer)) if head not in gone]
            for layer, gone in zip(importance, removed, strict=True)
        ]
        result = {
            "model": str(config.model),
            "data_file": str(config.data_file),
            "examples": len(examples),
            "removed": removed,
            "importance": [layer.tolist() for layer in importance],
            "heads": {"before": heads, "after": [len(numbers) for numbers in kept]},
        }
        with atomic.folder(target) as folder:
            counts = _write_pruned(folder, predictor, kept)
            result["parameters"] = dict(zip(("before", "after"), counts, strict=True))
            result["bytes"] = {when: 4 * count for when, count in result["parameters"].items()}
            _write_task(folder, predictor, task, examples)
            if scores:
                result["scores"] = scores | {"after": _scores(config, folder)}
            atomic.write_json(folder / RESULT_FILE, result)
    for line in _table(result):
        report(line)
    report(f"wrote {target}. To recover accuracy: kbert.finetune --init_from={target}")
    return result


def _write_pruned(folder, predictor, kept):
    """Writes the pruned model; returns the numbers of parameters before and after pruning."""
    parts = type(predictor.model).task_heads
    with predictor.folder.open_weights(parts=parts) as (config, weights):
        smaller, fewer = remove_heads(config, weights, kept)
        write_weights(folder, "kbert", smaller, fewer)
        return [
            sum(math.prod(shape) for shape in tensors.shapes.values())
            for tensors in (weights, fewer)
        ]


def _write_task(folder, predictor, task, examples):
    predictor.tokenizer.save_pretrained(folder)
    paired = getattr(examples[0], "text_pair", None) is not None
    write_task_settings(folder, task, (predictor.settings or {}).get("takes_pairs", paired))


def _scores(config, folder):
    """Returns the scores of a model on the `eval_file`."""
    settings = shared_settings(config, ExampleConfig)
    settings |= {"eval_file": config.eval_file, "batch_size": config.batch_size}
    return evaluate(EvaluateConfig(model=str(folder), **settings), lambda line: None)


def _table(result):
    """Yields the result as lines of text."""
    yield "layer  heads  kept  removed"
    heads = zip(result["heads"]["before"], result["heads"]["after"], strict=True)
    for layer, ((before, after), removed) in enumerate(zip(heads, result["removed"], strict=True)):
        yield f"{layer:5}  {before:5}  {after:4}  {' '.join(map(str, removed)) or '-'}"
    rows = {"heads": {when: sum(counts) for when, counts in result["heads"].items()}}
    rows |= {name: result[name] for name in ("parameters", "bytes")}
    yield f"{'':16}{'before':>12}{'after':>12}"
    for name, row in rows.items():
        share = row["after"] / row["before"] - 1
        yield f"{name:16}{row['before']:12,}{row['after']:12,}{share:9.1%}"
    for name, before in result.get("scores", {}).get("before", {}).items():
        after = result["scores"]["after"][name]
        if isinstance(before, float) and isinstance(after, float):
            yield f"{name:16}{before:12.4f}{after:12.4f}{after - before:+9.4f}"


def head_importance(
    model: "PretrainedModel",
    task: "Task",
    items: Sequence[EncodedExample],
    batch_size: int = 32,
) -> list[np.ndarray]:
    """Returns the importance of each head: the sensitivity of the loss to scaling its output.

    The importance is the mean over the examples of |dL / dm|, where m = 1 multiplies the head's
    output, divided by the L2 norm of these means over the heads of the layer. The paper's code sums
    magnitudes over the tokens instead; this code takes one magnitude per example, as in the paper's
    equation (2). A window of a long text counts as an example.

    Returns:
        N float64 arrays (H,), where H is the number of heads of the block.
    """
    batches = BucketedBatches(items, batch_size, task.max_seq_length, task.tokenizer.pad_id, seed=0)
    attentions = [block.attention for block in getattr(model, "bert", model).encoder.blocks]

    def gradients(features):
        """Returns the sum of |dL / dm| over a batch, (H,) for each block."""
        rows = tf.shape(features["labels"])[0]
        masks = [tf.ones((rows, attention.attention_heads)) for attention in attentions]
        with tf.GradientTape() as tape:
            tape.watch(masks)
            sequences = tf.reduce_prod(tf.shape(features["input_ids"])[:-1])  # B, or B * choices
            with _use_head_masks(
                attentions, [tf.repeat(m, sequences // rows, axis=0) for m in masks]
            ):
                outputs = model(features, training=False)
            losses, _ = task.losses(outputs, features["labels"])
            weights = features["label_weights"]
            axes = list(range(1, len(weights.shape)))
            counts = tf.maximum(tf.reduce_sum(weights, axes), 1e-6)
            loss = tf.reduce_sum(tf.reduce_sum(losses * weights, axes) / counts)
        return [tf.reduce_sum(tf.abs(s), axis=0) for s in tape.gradient(loss, masks)]

    specs = {
        name: tf.TensorSpec([None] * array.ndim, array.dtype)
        for name, array in batches.batch(0).items()
    }
    gradients = tf.function(gradients, [specs], autograph=False)
    totals = [np.zeros(attention.attention_heads) for attention in attentions]
    for number in range(batches.steps_per_epoch):
        features = batches.batch(number)
        for total, part in zip(totals, gradients(features), strict=True):
            total += part.numpy()
    means = [total / len(items) for total in totals]
    return [mean / max(float(np.linalg.norm(mean)), 1e-30) for mean in means]


@contextlib.contextmanager
def _use_head_masks(attentions, masks):
    try:
        for attention, mask in zip(attentions, masks, strict=True):
            attention.head_mask = mask
        yield
    finally:
        for attention in attentions:
            attention.head_mask = None


def least_important(
    importance: Sequence[Sequence[float] | np.ndarray], fraction: float
) -> list[list[int]]:
    """Returns the heads of each layer to remove, sorted; every layer keeps at least one head."""
    heads = sum(len(layer) for layer in importance)
    count, most = round(fraction * heads), heads - len(importance)
    if not 1 <= count <= most:
        raise UserError(
            f"prune_fraction must remove 1 to {most} of the {heads} heads, as each of the "
            f"{len(importance)} layers keeps at least one; got {fraction}, which removes {count}."
        )
    order = sorted(
        (value, layer, head)
        for layer, values in enumerate(importance)
        for head, value in enumerate(values)
    )
    removed = [[] for _ in importance]
    for _, layer, head in order:
        if count and len(removed[layer]) < len(importance[layer]) - 1:
            removed[layer].append(head)
            count -= 1
    return [sorted(heads) for heads in removed]
