"""Speed of classification with kbert, HF transformers (torch), KerasHub and OpenVINO.

    python -m benchmarks.infer --json=infer.json
    python -m benchmarks.infer --rows=base-1x128,base-mixed --rounds=5

All libraries have the same weights and get the same token ids; their outputs are compared, too.
kbert sorts texts by length, as it does by default. HF and OpenVINO keep the order of the texts and
pad each batch to its longest text; in the row "base-sorted", the texts are already sorted by
length, longest first. KerasHub pads to 128, as its preprocessor does. Operations are counted for
real tokens only. `sh benchmarks/peers.sh` installs the libraries.
"""

import statistics
import tempfile
import warnings

import numpy as np
from absl import app, flags

from benchmarks import data, harness
from benchmarks.flops import classification, count_flops, model_of
from benchmarks.measurement import Row
from benchmarks.report import NAMES

MODELS = {"base": model_of(12, 768), "minilm": model_of(6, 384, heads=12)}
TINY = model_of(1, 64)
BF16 = "mixed_bfloat16"
# name: (model, length of each text or "mixed" or "sorted", precision)
ROWS = {
    "base-32x128": ("base", [128] * 32, BF16),
    "base-1x128": ("base", [128], BF16),
    "base-1x16": ("base", [16], BF16),
    "base-mixed": ("base", "mixed", BF16),
    "base-sorted": ("base", "sorted", BF16),
    "base-32x128-float32": ("base", [128] * 32, "float32"),
    "minilm-32x128": ("minilm", [128] * 32, BF16),
    "minilm-mixed": ("minilm", "mixed", BF16),
}
LIBRARIES = ("kbert", "kbert_openvino", "hf", "keras_hub", "openvino")
BATCH_SIZE, LONGEST = 32, 128

FLAGS = flags.FLAGS


def rows(folder):
    """Yields the rows selected by --rows."""
    harness.check_rows(ROWS)
    written = set()
    for name in FLAGS.rows:
        size, lengths, precision = ROWS[name]
        if isinstance(lengths, str):
            drawn = data.mixed_lengths(64 if FLAGS.quick else FLAGS.texts)
            lengths = sorted(drawn)[::-1] if lengths == "sorted" else drawn
        examples = data.random_examples(lengths)
        model = TINY if FLAGS.quick else MODELS[size]
        if size not in written:
            save_model(model, f"{folder}/{size}")
            written.add(size)
        yield row(name, model, lengths, precision, f"{folder}/{size}", examples, folder)


def row(name, model, lengths, precision, weights, examples, folder):
    """Returns a Row of the comparison.

    Args:
        model: dict of sizes.
        lengths: length of each text in tokens.
        weights: folder of the model.
        examples: list of (input_ids, label) with these lengths.
        folder: folder for the examples.
    """
    N, mean = len(lengths), statistics.mean(map(int, lengths))
    settings = {
        "area": "infer",
        "folder": weights,
        "examples": data.write_examples(examples, f"{folder}/{name}.json"),
        "batch_size": BATCH_SIZE,
        "length": LONGEST,
        "precision": precision,
        "warmup_steps": 3,
    }
    shape = f"{min(N, BATCH_SIZE)} x {min(lengths)}"
    if min(lengths) < max(lengths):
        shape += f" to {max(lengths)} tokens (mean {mean:.0f}), {N} texts"
    return Row(
        name,
        f"{model['num_hidden_layers']} layers x {model['hidden_size']}, {shape}, {precision}",
        settings,
        LIBRARIES,
        "texts",
        statistics.mean(count_flops(classification(model, 1, int(length))) for length in lengths),
        classification(model, min(N, BATCH_SIZE), round(mean)),
        latency=N == 1,
    )


def save_model(model, folder):
    """Writes a classifier with random weights to `folder`/kbert, `folder`/hf and so on."""
    import kbert
    from kbert.tokenizer.vocab import SPECIAL_TOKENS

    # Larger weights than the default initialization, so that the texts get different scores; and no
    # vector of zeros or ones, whose ops TensorFlow would omit.
    config = kbert.BertConfig(**model, initializer_range=0.05)
    classifier = kbert.BertForSequenceClassification(config)
    generator = np.random.default_rng(0)
    for weight in classifier.weights:
        if len(weight.shape) == 1:
            weight.assign_add(generator.normal(scale=0.02, size=weight.shape))
    words = [f"w{number}" for number in range(len(SPECIAL_TOKENS), config.vocab_size)]
    tokenizer = kbert.BertTokenizer([*SPECIAL_TOKENS, *words])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about KerasHub's GELU, which uses tanh
        for format in ("kbert", "hf", "keras_hub"):
            classifier.save_pretrained(f"{folder}/{format}", format)
    tokenizer.save_pretrained(f"{folder}/kbert")


def agreement(row, measured, folder):
    """Compares the logits of the other libraries with kbert's; returns a line to print."""
    saved = {library: np.load(v["saved"]) for library, v in measured.items() if "saved" in v}
    if "kbert" not in saved or len(saved) < 2:
        return None
    expected = saved.pop("kbert")
    for library, logits in saved.items():
        measured[library]["largest_difference"] = float(np.abs(logits - expected).max())
    text = ", ".join(f"{NAMES[s]} {measured[s]['largest_difference']:.1g}" for s in saved)
    span = f"{expected.min():.2g} to {expected.max():.2g}"
    return f"- {row.name}: largest differences from kbert's logits ({span}): {text}"


def main(_):
    """Runs the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        harness.compare("inference", rows(folder), agreement)


if __name__ == "__main__":
    harness.define_flags(ROWS)
    flags.DEFINE_integer("texts", 256, "number of texts in the rows with mixed lengths")
    app.run(main)
