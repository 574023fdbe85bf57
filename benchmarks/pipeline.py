"""Speed of preparing text and of making batches.

python benchmarks/pipeline.py --text=FILE.txt --vocab_file=VOCAB --size_mb=1000

Writes a text of `size_mb` by repeating and altering FILE, prepares it in a process of its own, and
prints MB/s per core with the peak memory of the process and its workers together; then the tokens/s
of masking and batching alone, in several runs.
"""

import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from absl import app, flags

flags.DEFINE_string("text", None, "a plain text file", required=True)
flags.DEFINE_string("vocab_file", None, "a vocabulary", required=True)
flags.DEFINE_integer("size_mb", 1000, "size of the text to prepare, in MB")
flags.DEFINE_integer("batches", 400, "batches of a timed run")
FLAGS = flags.FLAGS


def write_altered(source, target, size):
    """Repeats a text up to `size` bytes, each time with another letter exchanged, so it differs."""
    text = pathlib.Path(source).read_bytes()
    letters = b"etaoinshrdlu"
    with open(target, "wb") as file:
        for number in range(-(-size // len(text))):
            a, b = letters[number % 12], letters[number * 5 % 12]
            file.write(text.translate(bytes.maketrans(bytes([a, b]), bytes([b, a]))))
        file.truncate(size)


def memory_of_group(pids):
    """Resident memory of processes in bytes, pages that they share counted once for each."""
    total = 0
    for pid in pids:
        try:
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            pass
    return total


def watch(process, peak):
    """Keeps the peak memory of a process and its children in peak[0]."""
    while process.poll() is None:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        peak[0] = max(peak[0], memory_of_group([process.pid, *map(int, found.stdout.split())]))
        time.sleep(0.5)


def main(_):
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_altered(FLAGS.text, folder / "text.txt", FLAGS.size_mb * 10**6)
        begin, peak = time.perf_counter(), [0]
        command = [
            *(sys.executable, "-m", "kbert.prepare", f"--input={folder}/text.txt"),
            *(f"--vocab_file={FLAGS.vocab_file}", f"--output_dir={folder}/corpus"),
        ]
        process = subprocess.Popen(command)
        threading.Thread(target=watch, args=(process, peak)).start()
        assert process.wait() == 0
        wall = time.perf_counter() - begin
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = usage.ru_utime + usage.ru_stime
        print(
            f"prepare: {FLAGS.size_mb} MB in {wall:.1f} s, {FLAGS.size_mb / wall:.1f} MB/s; "
            f"{FLAGS.size_mb / cpu:.1f} MB per core and second; peak memory {peak[0] / 1e9:.2f} GB",
            flush=True,
        )
        time_batches(folder / "corpus")


def time_batches(folder):
    """Prints the tokens/s of the pipeline, whole words and single tokens, five runs each."""
    from kbert.data import Corpus, pretraining_dataset

    corpus = Corpus(folder)
    for whole_word_mask in (False, True):
        for max_seq_length, batch_size in ((128, 64), (512, 16)):
            rates = []
            for seed in range(5):
                dataset = pretraining_dataset(
                    corpus,
                    batch_size,
                    max_seq_length,
                    whole_word_mask=whole_word_mask,
                    seed=seed,
                    steps=FLAGS.batches,
                )
                begin, tokens = time.perf_counter(), 0
                for batch in dataset:
                    tokens += int(batch["attention_mask"].numpy().sum())
                rates.append(tokens / (time.perf_counter() - begin) / 1e6)
            print(
                f"batches of {batch_size} x {max_seq_length}, whole_word_mask={whole_word_mask}: "
                f"median {statistics.median(rates):.2f} M tokens/s "
                f"({min(rates):.2f} to {max(rates):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
