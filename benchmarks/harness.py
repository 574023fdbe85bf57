"""Common parts of all comparisons: flags, commands of the libraries, printing and writing results.

`benchmarks.measurement` documents the method, and `benchmarks.report` the entries of the results.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import sys
import tempfile

from absl import app, flags

from benchmarks.measurement import ROOT, environment, measure
from benchmarks.report import NAMES, headline, machine, notes, summaries, table

FLAGS = flags.FLAGS
PEERS = ("hf", "keras_hub", "openvino")


def define_flags(rows, threads=None):
    """Defines the flags of a comparison.

    Args:
        rows: names of all rows.
        threads: default of --threads; None: the number of CPUs.
    """
    flags.DEFINE_list("rows", list(rows), f"rows to measure: {', '.join(rows)}")
    flags.DEFINE_list("libraries", ["kbert", "kbert_openvino", *PEERS], "libraries to compare")
    flags.DEFINE_integer("rounds", 5, "number of rounds; each library runs once per round")
    flags.DEFINE_float("round_seconds", 5.0, "seconds per library and round, at least one step")
    threads = threads or len(os.sched_getaffinity(0))
    flags.DEFINE_integer("threads", threads, "number of threads, and of CPUs, of each library")
    flags.DEFINE_bool("quick", False, "test run: a tiny model and one short round")
    flags.DEFINE_string("json", None, "file for all results")
    flags.DEFINE_string("python_kbert", sys.executable, "Python with kbert's dependencies")
    flags.DEFINE_string(
        "before", None, "a checkout of an earlier kbert, to include in the comparison"
    )
    for peer in PEERS:
        interpreter = f"benchmarks/.peers/{peer}/bin/python"
        flags.DEFINE_string(f"python_{peer}", interpreter, f"Python with {NAMES[peer]}")


def commands():
    """Returns a dict of library -> command of its worker, a list of str, according to the flags."""
    kbert = [FLAGS.python_kbert, "-m", "benchmarks.workers.kbert_worker"]
    by_library = {"kbert": kbert, "kbert_openvino": [*kbert, "openvino"]}
    by_library["gemm"] = [FLAGS.python_kbert, "-m", "benchmarks.workers.gemm"]
    if FLAGS.before:
        by_library["before"] = ["/usr/bin/env", "-C", FLAGS.before, *kbert]
    for peer in PEERS:
        python = str(ROOT / FLAGS[f"python_{peer}"].value)
        by_library[peer] = [python, "-m", f"benchmarks.workers.{peer}_worker"]
    return by_library


def compare(area, rows, check=None, more=None):
    """Measures the selected rows and prints a table; `--json` is rewritten after every row.

    Args:
        area: name of the comparison.
        rows: iterable of Row.
        check: function of (row, result of `measure`, folder) that compares the outputs saved in the
            folder, adds the comparison to the result and returns a line to print, or None. If
            `check` is None, no outputs are saved.
        more: dict of additional entries for the JSON file.
    """
    compared, remarks, host = [], [], machine()
    rounds, seconds = (1, 0.2) if FLAGS.quick else (FLAGS.rounds, FLAGS.round_seconds)
    for row in rows:
        libraries = tuple(library for library in row.libraries if library in FLAGS.libraries)
        if FLAGS.before:
            libraries = (*libraries, "before")
        row = dataclasses.replace(row, libraries=libraries)
        with tempfile.TemporaryDirectory() as folder:
            place = folder if check else None
            measured = measure(row, commands(), FLAGS.threads, rounds, seconds, progress, place)
            remarks.append(check and check(row, measured, folder))
        compared.append((row, summaries(row, measured)))
        results = [line for _, lines in compared for line in lines]
        if FLAGS.json:
            write_json({"area": area, "machine": host, "results": results} | (more or {}))
    variables = environment(FLAGS.threads)
    print(headline(area, host, results, FLAGS.threads, rounds, seconds, variables))
    print(table(compared), end="\n\n")
    print("\n".join([*filter(None, remarks), *notes(results)]))


def write_json(result):
    """Writes the results and the settings of the measurement to --json."""
    names = ("threads", "rounds", "round_seconds", "quick")
    how = {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "flags": {name: FLAGS[name].value for name in names},
        "environment": environment(FLAGS.threads),
    }
    pathlib.Path(FLAGS.json).write_text(json.dumps(how | result, indent=1) + "\n")


def progress(line):
    """Prints progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def check_rows(known):
    """Raises UsageError if --rows has names that are not in `known`."""
    unknown = set(FLAGS.rows) - set(known)
    if unknown:
        raise app.UsageError(
            f"unknown rows: {', '.join(sorted(unknown))}; use some of {', '.join(known)}"
        )
