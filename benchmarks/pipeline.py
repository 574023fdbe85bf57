"""Speed of kbert.prepare, and of pretraining batches from kbert, HF and KerasHub.

    python -m benchmarks.pipeline --text=train.txt --vocab_file=vocab.txt --json=pipeline.json

Writes a text of --size_mb MB by repeating and altering --text, prepares it in a separate process,
and prints MB/s per core and the peak memory of the process and its workers together. Then measures
how many tokens per second, without padding, each library puts into batches: kbert from the prepared
corpus, HF and KerasHub from the first --peer_mb MB of the same text. The notes list the precomputed
steps of each library. `sh benchmarks/peers.sh` installs the libraries.
"""

import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

from absl import app, flags

from benchmarks import data, harness
from benchmarks.measurement import Row

FLAGS = flags.FLAGS
# name: (B, L, whole-word masking, libraries)
ROWS = {
    "64x128": (64, 128, False, ("kbert", "hf", "keras_hub")),
    "16x512": (16, 512, False, ("kbert", "hf", "keras_hub")),
    "64x128-words": (64, 128, True, ("kbert", "hf")),
    "16x512-words": (16, 512, True, ("kbert", "hf")),
}


def write_altered(source, target, size):
    """Writes repetitions of a text, `size` bytes in total, with its digits permuted in ten ways."""
    text, digits = pathlib.Path(source).read_bytes(), b"0123456789"
    with open(target, "wb") as file:
        for number in range(-(-size // len(text))):
            moved = digits[number % 10 :] + digits[: number % 10]
            file.write(text.translate(bytes.maketrans(digits, moved)))
        file.truncate(size)


def memory_of_group(pids):
    """Returns the resident memory of processes in bytes; pages that they share count once."""
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
    """Records the peak memory of a process and its children together in peak[0], in bytes."""
    while process.poll() is None:
        done = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        peak[0] = max(peak[0], memory_of_group([process.pid, *map(int, done.stdout.split())]))
        time.sleep(0.5)


def time_prepare(text, vocab_file, folder):
    """Prepares a text with one process per thread.

    Returns:
        dict of `bytes`, the size of the text, `wall_s` and `cpu_s`, in seconds, and `peak_bytes`.
    """
    size = pathlib.Path(text).stat().st_size
    begin, peak = time.perf_counter(), [0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        *(FLAGS.python_kbert, "-m", "kbert.prepare", f"--input={text}", f"--output_dir={folder}"),
        *(f"--vocab_file={vocab_file}", f"--processes={FLAGS.threads}"),
    ]
    process = subprocess.Popen(command, stdout=sys.stderr)
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    if process.wait():
        sys.exit("kbert.prepare failed")
    wall = time.perf_counter() - begin
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"bytes": size, "wall_s": wall, "cpu_s": cpu, "peak_bytes": peak[0]}


def prepare_line(took):
    """Returns a line with the result of `time_prepare`."""
    megabytes = took["bytes"] / 1e6
    return (
        f"prepare: {megabytes:,.0f} MB in {took['wall_s']:.1f} s, "
        f"{megabytes / took['wall_s']:.1f} MB/s; {megabytes / took['cpu_s']:.1f} MB/s per core; "
        f"peak memory {took['peak_bytes'] / 1e9:.2f} GB"
    )


def rows(folder, text, vocab_file):
    """Yields the rows selected by --rows."""
    from kbert.tokenizer import BertTokenizer

    BertTokenizer(vocab_file).save_pretrained(folder, "hf")
    for name in FLAGS.rows:
        B, L, whole_words, libraries = ROWS[name]
        settings = {
            "area": "pipeline",
            "corpus": f"{folder}/corpus",
            "text": str(text),
            "size": int((0.5 if FLAGS.quick else FLAGS.peer_mb) * 1e6),
            "vocab_file": str(vocab_file),
            "folder": folder,
            "batch_size": B,
            "length": L,
            "whole_word_mask": whole_words,
            "warmup_steps": 3,
        }
        detail = f"batches of {B} x {L}, {'whole words' if whole_words else 'tokens'} masked"
        yield Row(name, detail, settings, libraries, "M tokens", scale=1e6)


def main(_):
    """Prepares the text, then runs the comparison."""
    harness.check_rows(ROWS)
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = data.vocabulary(FLAGS.vocab_file, folder)
        text = pathlib.Path(folder) / "text.txt"
        size = 5 * 10**6 if FLAGS.quick else FLAGS.size_mb * 10**6
        write_altered(FLAGS.text or data.sample_text(folder), text, size)
        took = time_prepare(text, vocab_file, f"{folder}/corpus")
        print(prepare_line(took), flush=True)
        harness.compare("pipeline", rows(folder, text, vocab_file), more={"prepare": took})


if __name__ == "__main__":
    harness.define_flags(ROWS)
    flags.DEFINE_string("text", None, "a plain text file; default: kbert's sample text")
    flags.DEFINE_string(
        "vocab_file", None, "a vocabulary; default: learned from kbert's sample text"
    )
    flags.DEFINE_integer("size_mb", 1000, "size of the text to prepare, in MB")
    flags.DEFINE_integer("peer_mb", 10, "size of the part that HF and KerasHub read, in MB")
    app.run(main)
