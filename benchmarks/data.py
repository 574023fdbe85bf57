"""Inputs of the comparisons, the same for every library."""

import gzip
import json
import pathlib

import numpy as np

PAD, CLS, SEP = 0, 101, 102  # as in bert-base-uncased
BATCHES = 8  # number of different batches, which are repeated


def pretraining_batches(settings):
    """Returns `BATCHES` batches of random tokens.

    The first example of each batch has half the length, so that no library can skip the attention
    mask. Its masked slots beyond the end have weight 0.

    Args:
        settings: dict with `batch_size` (B), `length` (L), `predictions` (M) and `model`.

    Returns:
        list of dicts of arrays: `kbert.features.PRETRAINING_FEATURES`.
    """
    rng = np.random.default_rng(0)
    B, L, M = settings["batch_size"], settings["length"], settings["predictions"]
    V = settings["model"]["vocab_size"]
    batches = []
    for _ in range(BATCHES):
        real = np.ones((B, L), np.int32)
        real[0, L // 2 :] = 0
        ids = rng.integers(1000, V, (B, L)).astype(np.int32)
        ids[:, 0] = CLS
        positions = np.stack([np.sort(rng.permutation(L - 1)[:M]) + 1 for _ in range(B)])
        weights = np.take_along_axis(real, positions, axis=1)
        batches.append(
            {
                "input_ids": ids * real,
                "attention_mask": real,
                "token_type_ids": (np.arange(L) >= L // 2).astype(np.int32) * real,
                "masked_positions": (positions * weights).astype(np.int32),
                "masked_ids": rng.integers(1000, V, (B, M)).astype(np.int32) * weights,
                "masked_weights": weights.astype(np.float32),
                "next_sentence_labels": rng.integers(0, 2, B).astype(np.int32),
            }
        )
    return batches


def mixed_lengths(count):
    """Draws `count` lengths from 10 to 128 tokens, with a fixed seed; returns an array."""
    return np.random.default_rng(0).integers(10, 129, count)


def random_examples(lengths, vocab_size=30522):
    """Returns a list of (input_ids, label) with random ids and the labels 0 and 1.

    Args:
        lengths: length of each example in tokens, including [CLS] and [SEP].
        vocab_size: upper bound of the ids, exclusive; the lower bound is 1000.
    """
    rng = np.random.default_rng(0)
    examples = []
    for length in lengths:
        ids = rng.integers(1000, vocab_size, length)
        ids[0], ids[-1] = CLS, SEP
        examples.append(([int(i) for i in ids], int(rng.integers(2))))
    return examples


def text_examples(path, tokenizer, count, max_length):
    """Draws `count` rows of a tab-separated table; returns a list of (input_ids, label).

    Args:
        path: plain or gzipped file with a header row and the columns text and label, in this order.
        tokenizer: BertTokenizer.
        max_length: maximum length of an example in tokens.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        rows = [line.rstrip("\n").split("\t") for line in file.readlines()[1:]]
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    features = tokenizer([rows[i][0] for i in chosen], max_length=max_length)
    lengths = features["attention_mask"].numpy().sum(axis=1)
    ids = features["input_ids"].numpy()
    return [
        ([int(i) for i in row[:length]], int(rows[number][1]))
        for row, length, number in zip(ids, lengths, chosen, strict=True)
    ]


def write_examples(examples, path):
    """Writes a list of (input_ids, label) to a JSON file; returns its path as a str."""
    pathlib.Path(path).write_text(json.dumps(examples))
    return str(path)


def read_examples(path):
    """Reads the list of (input_ids, label) that `write_examples` wrote."""
    return json.loads(pathlib.Path(path).read_text())


def padded(examples, length=None):
    """Returns the features of examples, (B, L) int64 each, padded to `length` or to the longest."""
    length = length or max(len(ids) for ids, _ in examples)
    input_ids = np.full((len(examples), length), PAD)
    for row, (ids, _) in zip(input_ids, examples, strict=True):
        row[: len(ids)] = ids
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).astype(input_ids.dtype),
        "token_type_ids": np.zeros_like(input_ids),
    }


def split_into_batches(examples, batch_size):
    """Splits the examples into batches, in order."""
    return [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]


def vocabulary(vocab_file, folder, size=30522):
    """Returns `vocab_file`, or the path of a vocabulary learned from kbert's sample text.

    Args:
        folder: folder for the sample text and the learned vocabulary.
        size: number of entries to learn.
    """
    if vocab_file:
        return vocab_file
    from kbert.tokenizer.vocab import learn_vocab, write_vocab

    path = pathlib.Path(folder) / "vocab.txt"
    write_vocab(learn_vocab(sample_text(folder).read_text("utf-8").split("\n"), size), path)
    return str(path)


def sample_text(folder):
    """Unpacks kbert's sample text into the folder; returns its path."""
    from kbert.corpus.text_sources import SAMPLES

    path = pathlib.Path(folder) / "sample.txt"
    if not path.exists():
        path.write_bytes(gzip.decompress(SAMPLES["sample:train"].read_bytes()))
    return path


def read_lines(path, size):
    """Returns the first non-empty lines of a text, up to the line that reaches `size` bytes."""
    lines, total = [], 0
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            line = line.rstrip("\n")
            if line.strip():
                lines.append(line)
                total += len(line.encode())
            if total >= size:
                break
    return lines
