"""Common parts of all comparisons: flags, commands of the sides, printed and written results.

`benchmarks.turns` describes the measurement, `benchmarks.figures` the results.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import sys
import tempfile

from absl import app, flags

from benchmarks.figures import NAMES, headline, machine, notes, summaries, table
from benchmarks.turns import ROOT, environment, measure

FLAGS = flags.FLAGS
PEERS = ("hf", "keras_hub", "openvino")


def define_flags(rows, threads=None):
    """Defines the flags of a comparison. rows: names. threads: default number of threads."""
    flags.DEFINE_list("rows", list(rows), f"what to compare: {', '.join(rows)}")
    flags.DEFINE_list("sides", ["kbert", "kbert_openvino", *PEERS], "who takes part")
    flags.DEFINE_integer("rounds", 5, "rounds, each side once in each")
    flags.DEFINE_float("round_seconds", 5.0, "how long a side runs in a round, one step at least")
    threads = threads or len(os.sched_getaffinity(0))
    flags.DEFINE_integer("threads", threads, "threads of each side, and CPUs it is bound to")
    flags.DEFINE_bool("quick", False, "a tiny model and one short round: does everything work?")
    flags.DEFINE_string("json", None, "file to write all figures to")
    flags.DEFINE_string("python_kbert", sys.executable, "Python that has what kbert needs")
    flags.DEFINE_string("before", None, "a checkout of an earlier kbert, to compare with as a side")
    for peer in PEERS:
        interpreter = f"benchmarks/.peers/{peer}/bin/python"
        flags.DEFINE_string(f"python_{peer}", interpreter, f"Python that has {NAMES[peer]}")


def commands():
    """Returns a dict of side -> command, according to the flags."""
    interpreters = {peer: FLAGS[f"python_{peer}"].value for peer in PEERS}
    interpreters = {peer: str(ROOT / python) for peer, python in interpreters.items()}
    found = {
        peer: [python, "-m", f"benchmarks.workers.{peer}_side"]
        for peer, python in interpreters.items()
    }
    found["kbert"] = [FLAGS.python_kbert, "-m", "benchmarks.workers.kbert_side"]
    if FLAGS.before:
        found["before"] = ["/usr/bin/env", "-C", FLAGS.before, *found["kbert"]]
    found["kbert_openvino"] = [*found["kbert"], "openvino"]
    found["gemm"] = [FLAGS.python_kbert, "-m", "benchmarks.workers.gemm"]
    return found


def compare(area, rows, check=None, more=None):
    """Measures the selected rows and prints a table; `--json` is rewritten after every row.

    Args:
        area: name of the comparison. rows: iterable of Row. more: dict for the JSON file.
        check: function of (row, found, folder) that compares the saved results, adds the
            comparison to `found` and returns a line to print; None: nothing is saved.
    """
    compared, remarks, host = [], [], machine()
    rounds, seconds = (1, 0.2) if FLAGS.quick else (FLAGS.rounds, FLAGS.round_seconds)
    for row in rows:
        sides = tuple(side for side in row.sides if side in FLAGS.sides)
        if FLAGS.before:
            sides = (*sides, "before")
        row = dataclasses.replace(row, sides=sides)
        with tempfile.TemporaryDirectory() as folder:
            place = folder if check else None
            found = measure(row, commands(), FLAGS.threads, rounds, seconds, progress, place)
            remarks.append(check and check(row, found, folder))
        compared.append((row, summaries(row, found)))
        results = [line for _, lines in compared for line in lines]
        if FLAGS.json:
            write_json({"area": area, "machine": host, "results": results} | (more or {}))
    variables = environment(FLAGS.threads)
    print(headline(area, host, results, FLAGS.threads, rounds, seconds, variables))
    print(table(compared), end="\n\n")
    print("\n".join([*filter(None, remarks), *notes(results)]))


def write_json(result):
    """Writes all results and the settings of the measurement."""
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
    """Raises an error for unknown names of rows."""
    unknown = set(FLAGS.rows) - set(known)
    if unknown:
        raise app.UsageError(
            f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
