"""Speed of the tokenizers of kbert, HF (the fast one) and KerasHub, and whether the ids agree.

    python -m benchmarks.tokenizer --text=train.txt --vocab_file=vocab.txt --json=tokenizer.json

One thread each, same lines and vocabulary, 1,000 lines at a time; kbert and KerasHub as TensorFlow
graphs, HF as a function of lists. The row "prepare" is the whole kbert.prepare: reading, sentence
splitting, tokenizing, writing. To install the peers: `sh benchmarks/peers.sh`.
"""

import pathlib
import tempfile

import numpy as np
from absl import app, flags

from benchmarks import data, harness
from benchmarks.figures import NAMES
from benchmarks.turns import Row

ROWS = {"tokenizer": ("kbert", "hf", "keras_hub"), "prepare": ("kbert",)}
FLAGS = flags.FLAGS


def rows(folder):
    """Returns a row for each text, and the rows of kbert.prepare."""
    from kbert.tokenizer import BertTokenizer

    harness.check_rows(ROWS)
    vocab_file = data.vocabulary(FLAGS.vocab_file, folder)
    tokenizer = BertTokenizer(vocab_file)
    tokenizer.save_pretrained(folder, "hf")
    for text in FLAGS.text or [data.sample_text(folder)]:
        size = 50_000 if FLAGS.quick else int(FLAGS.size_mb * 1e6)
        part = pathlib.Path(folder) / f"part-{pathlib.Path(text).name}"
        part.write_bytes(b"".join(first_lines(text, size)))
        settings = {
            "text": str(part),
            "size": size,
            "vocab_file": str(vocab_file),
            "folder": folder,
            "batch_size": 1000,
            "warmup_steps": 2,
        }
        name, detail = pathlib.Path(text).stem, f"{part.stat().st_size / 1e6:.1f} MB"
        for area, sides in ROWS.items():
            if area in FLAGS.rows:
                yield Row(
                    f"{area}, {name}", detail, settings | {"area": area}, sides, "MB", scale=1e6
                )


def first_lines(path, size):
    """Returns whole lines from the start of a text, including empty ones, up to `size` bytes."""
    with open(path, "rb") as file:
        for line in file:
            size -= len(line)
            if size < 0:
                break
            yield line


def agreement(row, found, folder):
    """Fraction of lines with the same ids as kbert's; returns a line to print."""
    paths = {side: f"{v['saved']}.npz" for side, v in found.items() if "saved" in v}
    if "kbert" not in paths or len(paths) < 2:
        return None
    ours = lines_of(paths.pop("kbert"))
    for side, path in paths.items():
        theirs = lines_of(path)
        same = [np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]
        found[side]["equal_lines"] = float(np.mean(same))
    told = ", ".join(f"{NAMES[s]} {found[s]['equal_lines']:.4%}" for s in paths)
    return f"- {row.name}: lines with the ids of kbert, {len(ours):,} in all: {told}"


def lines_of(path):
    """Returns the ids of each line."""
    arrays = np.load(path)
    return np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])


def main(_):
    """Runs the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        harness.compare("tokenizing", rows(folder), agreement)


if __name__ == "__main__":
    harness.define_flags(ROWS, threads=1)
    flags.DEFINE_list("text", [], "plain text files; default: the sample that comes with kbert")
    flags.DEFINE_string("vocab_file", None, "a vocabulary; default: learned from kbert's sample")
    flags.DEFINE_float("size_mb", 4, "how much of each text to take, from the start")
    app.run(main)
