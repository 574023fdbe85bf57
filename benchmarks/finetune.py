"""Fine-tunes with kbert and with HF transformers (torch): same examples, batches and recipe.

    python benchmarks/finetune.py --seeds=0,1,2 FLAGS_OF_FINETUNE

Prints the scores and the duration of the runs with both libraries. The torch run starts from the
same folder, takes the same ids in the same order, and uses AdamW with the same epsilon, weight
decay, clipping and schedule; the task head and the dropout are random in each run. Both libraries
use float32. Scores are computed on --eval_file after the last step. The duration covers the
whole run, in which kbert also evaluates after every epoch and writes checkpoints. Requires the
extra [test].
"""

import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
import time

import numpy as np
from absl import app
from absl import flags as absl_flags

from kbert.data.bucketed_batches import BucketedBatches, bucket_length, pad_examples
from kbert.settings import FinetuneConfig
from kbert.tasks.examples import read_split
from kbert.tasks.labels import label_names
from kbert.tasks.registry import get_task, make_task, with_task_defaults
from kbert.tokenizer import BertTokenizer
from kbert.train import finetune
from kbert.train.schedule import WarmupPolynomialDecay
from kbert.utils import flags
from kbert.utils.formats import find_folder

flags.define(FinetuneConfig)
absl_flags.DEFINE_list("seeds", ["0"], "seeds of the runs")
absl_flags.DEFINE_bool("peer", True, "also run HF transformers")
CLASSES = {
    "tag": "BertForTokenClassification",
    "qa": "BertForQuestionAnswering",
}


def run_kbert(config, seed):
    """Fine-tunes with kbert; returns the scores on --eval_file and the duration in minutes."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        finetune(with_seed(config, seed), folder)
        metrics = open(f"{folder}/finetuning/metrics.jsonl").read().splitlines()
    last = [row for row in map(json.loads, metrics) if any(n.startswith("eval_") for n in row)][-1]
    scores = {name[5:]: value for name, value in last.items() if name.startswith("eval_")}
    return scores, (time.perf_counter() - begin) / 60


def with_seed(config, seed):
    """Returns the config with another seed."""
    return type(config)(**dataclasses.asdict(config) | {"seed": seed})


def run_hf(config, seed):
    """Fine-tunes HF's model in torch; returns the scores and the duration as `run_kbert` does."""
    import torch
    import transformers

    begin = time.perf_counter()
    torch.manual_seed(seed)
    tokenizer = BertTokenizer.from_pretrained(config.init_from)
    config = with_task_defaults(config)
    train, held_out = (read_split(f, config) for f in (config.train_file, config.eval_file))
    names = label_names(train) if get_task(config.task).min_labels else None
    task = make_task(config, tokenizer, names, any(getattr(e, "is_impossible", 0) for e in train))
    items = task.encode(train).items
    B, longest = config.batch_size, config.max_seq_length
    batches = BucketedBatches(items, B, longest, tokenizer.pad_id, seed)
    steps = max(1, round(config.epochs * batches.steps_per_epoch))
    schedule = WarmupPolynomialDecay(config.learning_rate, steps, int(config.warmup_ratio * steps))
    labels = {"num_labels": len(names)} if names else {}
    if config.task == "regress":
        labels = {"num_labels": 1}
    kind = getattr(transformers, CLASSES.get(config.task, "BertForSequenceClassification"))
    transformers.logging.set_verbosity_error()
    model = kind.from_pretrained(find_folder(config.init_from), **labels).train()
    decayed = [p for n, p in model.named_parameters() if "LayerNorm" not in n and "bias" not in n]
    others = [p for n, p in model.named_parameters() if "LayerNorm" in n or "bias" in n]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, eps=config.adam_epsilon)
    for step in range(steps):
        features = batches.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        loss = torch_loss(config.task, forward(model, features), features)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
    model.eval()
    encoded = task.encode(held_out)
    outputs = [None] * len(encoded.items)
    order = np.argsort([item.length for item in encoded.items], kind="stable")
    for i in range(0, len(order), B):
        part = [encoded.items[j] for j in order[i : i + B]]
        length = bucket_length(max(item.length for item in part), longest)
        with torch.no_grad():
            batch = forward(model, pad_examples(part, length, len(part), tokenizer.pad_id))
        for row, j in enumerate(order[i : i + B]):
            outputs[j] = {
                name: batch[name][row].numpy()
                for name in ("logits", "start_logits", "end_logits")
                if name in batch
            }
    scores = task.scores(held_out, task.predictions(held_out, encoded, outputs))
    return scores, (time.perf_counter() - begin) / 60


def forward(model, features):
    """Returns the outputs of HF's model for a batch."""
    import torch

    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(**{name: torch.tensor(features[name]).long() for name in names})


def torch_loss(task, outputs, features):
    """Computes the same loss as `kbert.tasks`, in torch."""
    import torch

    labels, weights = torch.tensor(features["labels"]), torch.tensor(features["label_weights"])
    entropy = torch.nn.functional.cross_entropy
    if task == "regress":
        losses = (outputs.logits[:, 0] - labels) ** 2
    elif task == "qa":
        starts, ends = labels.long().T
        losses = entropy(outputs.start_logits, starts, reduction="none")
        losses = (losses + entropy(outputs.end_logits, ends, reduction="none")) / 2
    else:
        logits = outputs.logits.reshape(-1, outputs.logits.shape[-1])
        losses = entropy(logits, labels.long().reshape(-1), reduction="none")
        losses = losses.reshape(weights.shape)
    return (losses * weights).sum() / weights.sum()


def main(_):
    """Runs all seeds with both libraries and prints the results."""
    config = flags.read(FinetuneConfig)
    if config.task in ("multilabel", "choice") or config.precision != "float32":
        raise app.UsageError("--task must be classify, pair, regress, tag or qa, in float32")
    libraries = {"kbert": run_kbert} | ({"HF": run_hf} if absl_flags.FLAGS.peer else {})
    results = {library: [] for library in libraries}
    for seed in map(int, absl_flags.FLAGS.seeds):
        for library, run in libraries.items():
            scores, minutes = run(config, seed)
            results[library].append(scores)
            rounded = {n: round(v, 4) for n, v in scores.items() if isinstance(v, float)}
            print(f"seed {seed} {library:5} {minutes:.1f} min {json.dumps(rounded)}", flush=True)
    for library, rows in results.items():
        for name in (n for n, value in rows[0].items() if isinstance(value, float)):
            values = [row[name] for row in rows]
            spread = f"{min(values):.4f} to {max(values):.4f}"
            print(f"{library:5} {name}: {statistics.mean(values):.4f} ({spread})")


if __name__ == "__main__":
    app.run(main)
