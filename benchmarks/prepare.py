"""Speed and memory of kbert.prepare with its runners, on text of several sizes.

    python -m benchmarks.prepare --text=WIKI.txt.gz,BOOKS.txt.gz --vocab_file=vocab.txt \\
        --folder=/tmp/prepare --json=prepare.json

Creates texts of the sizes in --sizes_mb by repeating --text: each repetition has its number at the
end of each document, but every tenth is an exact copy of the first. Then runs kbert.prepare on each
text in a separate process and samples the memory of the process and its workers from /proc:
resident memory, and its anonymous part, which excludes libraries and mapped files that the system
can reclaim. In the rows "lines", every line is a document, which shows the memory per document.
Rows that differ only in processes and runner must produce the same corpus.
"""

import gzip
import json
import pathlib
import shutil
import subprocess
import sys
import time

from absl import app, flags

from benchmarks import data
from benchmarks.report import machine

FLAGS = flags.FLAGS
COLUMNS = ("text", "flags", "documents", "wall time", "MB/s", "parent", "anonymous", "one worker")
COLUMNS += ("anonymous",)


def rows():
    """Yields (name of the text, flags of kbert.prepare, whether Beam is needed) of each row."""
    if FLAGS.quick:
        yield "1", ("--processes=1",), False
        return
    for size in map(int, FLAGS.sizes_mb):
        for processes in (1, 2):
            yield f"{size}", (f"--processes={processes}",), False
        yield f"{size}", ("--processes=2", "--deduplicate"), False
        yield f"{size}-lines", ("--processes=2", "--deduplicate"), False
    for more in ((), ("--deduplicate",)):
        yield f"{FLAGS.beam_mb}", ("--processes=1", *more), False
        for mode in ("--direct_running_mode=in_memory", "--direct_running_mode=multi_processing"):
            options = f"--beam_options=--runner=FnApiRunner --direct_num_workers=2 {mode}"
            yield f"{FLAGS.beam_mb}", ("--runner=beam", options, *more), True


def write_text(sources, target, size, lines):
    """Writes altered repetitions of documents until the file has at least `size` bytes.

    Args:
        sources: bytes, documents separated by empty lines.
        target: path of the file.
        size: minimum size, without the last separator.
        lines: whether each line is a document.
    """
    separator = b"\n" if lines else b"\n\n"
    documents = [part for part in sources.split(separator) if part.strip()]
    number = written = 0
    with open(target, "wb") as file:
        while written < size:
            end = b"\n\n" if number % 10 == 0 else b" %d.\n\n" % number
            for document in documents:
                written += file.write(document + end)
                if written >= size:
                    break
            number += 1


def read_sources(paths):
    """Reads and decompresses texts; returns bytes, with an empty line between two texts."""
    parts = []
    for path in paths:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            parts.append(file.read().strip())
    return b"\n\n".join(parts)


def memory(pid):
    """Returns the resident and anonymous memory of a process in bytes, or zeros if it has ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    values = dict(
        line.split(":", 1) for line in text.splitlines() if line.startswith(("Vm", "Rss"))
    )
    return tuple(int(values.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))


def descendants(pid):
    """Returns the process ids of all descendants of a process."""
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    children = [int(child) for child in done.stdout.split()]
    return [*children, *(pid for child in children for pid in descendants(child))]


def run(text, folder, settings, python):
    """Prepares a text with the given flags.

    Returns:
        dict of `bytes`, the size of the text, `wall_s`, in seconds, `peak_bytes`, a dict of
        "parent" and "worker" -> (resident, anonymous), `counts` of the corpus, and `shards`, their
        checksums.
    """
    shutil.rmtree(folder, ignore_errors=True)
    command = [python, "-m", "kbert.prepare", f"--input={text}", f"--output_dir={folder}"]
    command += [f"--vocab_file={FLAGS.vocab_file}", *settings]
    peaks = {"parent": (0, 0), "worker": (0, 0)}
    begin = time.perf_counter()
    with open(f"{folder}.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            groups = {"parent": [process.pid], "worker": descendants(process.pid)}
            for name, pids in groups.items():
                for pid in pids:
                    peaks[name] = tuple(map(max, peaks[name], memory(pid)))
            time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed; see {folder}.log")
    wall, size = time.perf_counter() - begin, text.stat().st_size
    manifest = json.loads(pathlib.Path(folder, "corpus.json").read_text())
    shutil.rmtree(folder)
    counts = {name: manifest[name] for name in ("documents", "tokens", "removed_duplicates")}
    shards = [shard["sha256"] for shard in manifest["shards"]]
    took = {"bytes": size, "wall_s": wall, "peak_bytes": peaks, "counts": counts}
    return took | {"shards": shards}


def line(name, settings, took):
    """Returns the cells of the table row for `took`, a result of `run`."""

    def gigabytes(value):
        return f"{value / 1e9:.2f} GB" if value else ""

    numbers = [value for role in ("parent", "worker") for value in took["peak_bytes"][role]]
    return [
        f"{took['bytes'] / 1e6:,.0f} MB{' of lines' if 'lines' in name else ''}",
        " ".join(settings).replace("--", "").replace("beam_options=runner=", ""),
        f"{took['counts']['documents'] + took['counts']['removed_duplicates']:,}",
        f"{took['wall_s']:.1f} s",
        f"{took['bytes'] / 1e6 / took['wall_s']:.1f}",
        *map(gigabytes, numbers),
    ]


def main(_):
    """Creates the texts, prepares them and prints a table."""
    folder = pathlib.Path(FLAGS.folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = FLAGS.text or [data.sample_text(folder)]
    FLAGS.vocab_file = data.vocabulary(FLAGS.vocab_file, folder)
    sources, results, first = read_sources(paths), [], {}
    has_beam = any(needs_beam for *_, needs_beam in rows()) and not (
        subprocess.run([FLAGS.python_beam, "-c", "import apache_beam"]).returncode
    )
    table = [COLUMNS, ["---"] * len(COLUMNS)]
    for name, settings, needs_beam in rows():
        if needs_beam and not has_beam:
            print(f"{FLAGS.python_beam} has no apache_beam: skipped", file=sys.stderr)
            continue
        text = folder / f"{name}.txt"
        if not text.exists():
            size = int(name.partition("-")[0]) * 10**6
            write_text(sources, text, size, lines=name.endswith("lines"))
        python = FLAGS.python_beam if needs_beam else FLAGS.python_kbert
        took = run(text, folder / "corpus", settings, python)
        shards = took.pop("shards")
        key = (name, "--deduplicate" in settings)
        if first.setdefault(key, shards) != shards:
            sys.exit(f"{name}: {' '.join(settings)} produced a different corpus")
        results.append({"text": name, "flags": settings, **took})
        table.append(line(name, settings, took))
        print(" | ".join(table[-1]), file=sys.stderr, flush=True)
        if FLAGS.json:
            result = {"area": "prepare", "machine": machine(), "results": results}
            pathlib.Path(FLAGS.json).write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(f"| {' | '.join(cells)} |" for cells in table))


if __name__ == "__main__":
    flags.DEFINE_list("text", [], "plain text files, or .gz; default: kbert's sample text")
    flags.DEFINE_string(
        "vocab_file", None, "a vocabulary; default: learned from kbert's sample text"
    )
    flags.DEFINE_string("folder", "/tmp/prepare", "folder for texts and corpora")
    flags.DEFINE_list("sizes_mb", ["500", "2000"], "sizes of the texts")
    flags.DEFINE_integer(
        "beam_mb", 100, "size of the text for Beam, whose runner keeps it in memory"
    )
    flags.DEFINE_bool("quick", False, "test run with one small text")
    flags.DEFINE_string("python_kbert", sys.executable, "Python with kbert")
    flags.DEFINE_string("python_beam", sys.executable, "Python with kbert and apache_beam")
    flags.DEFINE_string("json", None, "file for all results")
    app.run(main)
