"""Speed of training steps of kbert, HF transformers (torch) and KerasHub.

    python -m benchmarks.train --json=train.json
    python -m benchmarks.train --rows=base-128,finetune-base --rounds=5 --sst2=train.tsv.gz
    python -m benchmarks.train --scaling

A pretraining step consists of the forward pass, MLM and NSP loss, backward pass, clipping to a
global norm of 1, and AdamW, on the batches of `benchmarks.data`, with dropout 0.1; 15 % of the
tokens are masked. HF's model computes the MLM logits of all tokens; in the row "gathered", this
benchmark makes it compute only those at masked tokens, like the other libraries. In fine-tuning,
all libraries train on the same examples of mixed length, but each library batches and pads them in
its own way; operations are counted for real tokens only. `sh benchmarks/peers.sh` installs the
libraries.

`--scaling` measures only kbert, at several lengths and depths, and with weights from a folder.
"""

import dataclasses
import statistics
import tempfile

from absl import app, flags

from benchmarks import data, harness
from benchmarks.flops import classification, count_flops, model_of, pretraining_step
from benchmarks.measurement import Row

BASE, SMALL = model_of(12, 768), model_of(4, 512)
MINILM = model_of(6, 384, heads=12)
TINY = model_of(1, 64)
# name: (model, B, L, M, precision)
PRETRAINING = {
    "base-128": (BASE, 16, 128, 20, "mixed_bfloat16"),
    "base-512": (BASE, 4, 512, 77, "mixed_bfloat16"),
    "small-128": (SMALL, 16, 128, 20, "mixed_bfloat16"),
    "small-512": (SMALL, 4, 512, 77, "mixed_bfloat16"),
    "base-128-float32": (BASE, 16, 128, 20, "float32"),
    "base-128-gathered": (BASE, 16, 128, 20, "mixed_bfloat16"),
}
FINETUNING = {"finetune-minilm": MINILM, "finetune-base": BASE}
LIBRARIES = ("kbert", "hf", "keras_hub")

FLAGS = flags.FLAGS


def pretraining_row(name, model, B, L, M, precision, libraries=LIBRARIES, **more):
    """Returns a Row of pretraining steps."""
    if FLAGS.quick:
        model = TINY
    products = pretraining_step(model, B, L, M)
    settings = {
        "area": "train",
        "model": model,
        "batch_size": B,
        "length": L,
        "predictions": M,
        "precision": precision,
        "gather": name.endswith("gathered"),
        "warmup_steps": 3,
    }
    return Row(
        name,
        f"{describe(model)}, {B} x {L}, {precision}",
        settings | more,
        libraries,
        "sequences",
        count_flops(products) / B,
        products,
    )


def finetuning_row(name, model, examples, path, B=32, precision="mixed_bfloat16"):
    """Returns a Row of fine-tuning epochs.

    Args:
        model: dict of sizes.
        examples: list of (input_ids, label).
        path: file of these examples.
    """
    if FLAGS.quick:
        model = TINY
    lengths = [len(ids) for ids, _ in examples]
    per_example = [count_flops(classification(model, 1, length, train=True)) for length in lengths]
    settings = {
        "area": "finetune",
        "model": model,
        "batch_size": B,
        "length": 128,
        "examples": path,
        "precision": precision,
        "warmup_steps": 2,
    }
    return Row(
        name,
        f"{describe(model)}, {B} x {min(lengths)} to {max(lengths)} tokens "
        f"(mean {statistics.mean(lengths):.0f}), {precision}",
        settings,
        LIBRARIES,
        "examples",
        statistics.mean(per_example),
        classification(model, B, round(statistics.mean(lengths)), train=True),
    )


def describe(model):
    """Returns a description of a model's size."""
    return f"{model['num_hidden_layers']} layers x {model['hidden_size']}"


def finetuning_examples():
    """Returns a list of (input_ids, label), from --sst2 or random."""
    count = 64 if FLAGS.quick else FLAGS.examples
    if not FLAGS.sst2:
        return data.random_examples(data.mixed_lengths(count))
    from kbert.tokenizer import BertTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = BertTokenizer(data.vocabulary(FLAGS.vocab_file, folder))
        return data.text_examples(FLAGS.sst2, tokenizer, count, 128)


def scaling_rows(folder):
    """Yields rows of kbert alone, with B x L = 2,048 tokens; writes a BERT-base to `folder`."""
    alone = {"precision": "mixed_bfloat16", "libraries": ("kbert",)}
    for layers in (4, 12, 24):
        for L, M in ((128, 20), (256, 39), (512, 77)):
            model = model_of(layers, 768)
            row = pretraining_row(f"{layers} x {L}", model, 2048 // L, L, M, **alone)
            yield dataclasses.replace(row, unit="tokens", scale=1 / L)
    save_base(folder)
    yield pretraining_row("from a folder", BASE, 16, 128, 20, **alone, folder=folder)


def save_base(folder):
    """Writes a BERT-base with random weights."""
    import kbert

    model = TINY if FLAGS.quick else BASE
    kbert.BertForPreTraining(kbert.BertConfig(**model)).save_pretrained(folder)


def rows(folder):
    """Yields the rows selected by --rows, or with --scaling the rows of `scaling_rows`."""
    harness.check_rows([*PRETRAINING, *FINETUNING])
    if FLAGS.scaling:
        yield from scaling_rows(folder)
        return
    examples = finetuning_examples()
    path = data.write_examples(examples, f"{folder}/examples.json")
    for name in FLAGS.rows:
        if name in PRETRAINING:
            yield pretraining_row(name, *PRETRAINING[name])
        else:
            yield finetuning_row(name, FINETUNING[name], examples, path)


def main(_):
    """Runs the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        harness.compare("training", rows(folder))


if __name__ == "__main__":
    harness.define_flags([*PRETRAINING, *FINETUNING])
    flags.DEFINE_string(
        "sst2", None, "texts and labels to fine-tune on (.tsv); default: random ids"
    )
    flags.DEFINE_string(
        "vocab_file", None, "a vocabulary; default: learned from kbert's sample text"
    )
    flags.DEFINE_integer("examples", 320, "examples to fine-tune on; a step is one epoch")
    flags.DEFINE_bool(
        "scaling", False, "measure only kbert: several lengths and depths, weights from a folder"
    )
    app.run(main)
