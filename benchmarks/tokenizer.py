"""Speed of the tokenizers of kbert, HF (fast) and KerasHub, and agreement of their ids.

    python -m benchmarks.tokenizer --text=train.txt --vocab_file=vocab.txt --json=tokenizer.json

Each library tokenizes the same lines with the same vocabulary on one thread, 1,000 lines per call.
kbert and KerasHub run as TensorFlow graphs; HF takes and returns Python lists. The row "prepare"
measures kbert.prepare as a whole: reading, sentence splitting, tokenizing and writing.
`sh benchmarks/peers.sh` installs the libraries.
"""

import pathlib
import tempfile

import numpy as np
from absl import app, flags

from benchmarks import data, harness
from benchmarks.measurement import Row
from benchmarks.report import NAMES

ROWS = {"tokenizer": ("kbert", "hf", "keras_hub"), "prepare": ("kbert",)}
FLAGS = flags.FLAGS


def rows(folder):
    """Yields the rows selected by --rows for each text."""
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
        for area, libraries in ROWS.items():
            if area in FLAGS.rows:
                yield Row(
                    f"{area}, {name}", detail, settings | {"area": area}, libraries, "MB", scale=1e6
                )


def first_lines(path, size):
    """Yields the first lines of a text, including empty ones, up to `size` bytes in total."""
    with open(path, "rb") as file:
        for line in file:
            size -= len(line)
            if size < 0:
                break
            yield line


def agreement(row, measured, folder):
    """Computes the fraction of lines with the same ids as in kbert; returns a line to print."""
    paths = {library: f"{v['saved']}.npz" for library, v in measured.items() if "saved" in v}
    if "kbert" not in paths or len(paths) < 2:
        return None
    expected = lines_of(paths.pop("kbert"))
    for library, path in paths.items():
        same = [np.array_equal(a, b) for a, b in zip(expected, lines_of(path), strict=True)]
        measured[library]["equal_lines"] = float(np.mean(same))
    text = ", ".join(f"{NAMES[s]} {measured[s]['equal_lines']:.4%}" for s in paths)
    return f"- {row.name}: lines with the same ids as kbert, of {len(expected):,}: {text}"


def lines_of(path):
    """Reads a file of `ids` and `lengths`; returns a list of the ids of each line."""
    arrays = np.load(path)
    return np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])


def main(_):
    """Runs the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        harness.compare("tokenizing", rows(folder), agreement)


if __name__ == "__main__":
    harness.define_flags(ROWS, threads=1)
    flags.DEFINE_list("text", [], "plain text files; default: kbert's sample text")
    flags.DEFINE_string(
        "vocab_file", None, "a vocabulary; default: learned from kbert's sample text"
    )
    flags.DEFINE_float("size_mb", 4, "MB to read from the start of each text")
    app.run(main)
