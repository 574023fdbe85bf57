"""Kills kbert's programs and does other harm to them; says what was lost.

    python -m tests.chaos --kills=200 --seed=0
    python -m tests.chaos --kills=0

First the faults, one after the other, then the kills at moments by chance. It ends with status 1 if
anything was lost but what came after the last checkpoint, or if a number changed. For Linux, as
root, since small disks are mounted.
"""

import argparse
import pathlib
import random
import re
import resource
import sys
import tempfile
import time

from tests.chaos import forks
from tests.chaos.bench import Bench
from tests.chaos.faults import FAULTS
from tests.chaos.kills import Subject, Tally, kill_again_and_again

# Which program is killed next: runs are what takes longest to make.
TURNS = ("pretrain", "prepare", "pretrain", "pretrain_float16", "export")
MAX_IN_A_ROW = {"export": 5, "prepare": 3}


def report(line):
    print(line, flush=True)


def harm(bench, pattern):
    """Does each fault whose name matches; returns how many went wrong."""
    wrong = 0
    for name, fault in FAULTS.items():
        if not re.search(pattern, name):
            continue
        begin = time.monotonic()
        try:
            outcome = fault(bench)
        except Exception as error:  # of kbert in a fork, or of what looks at what it left
            wrong, outcome = wrong + 1, f"WRONG: {type(error).__name__}: {error}"
        report(f"{name} | {outcome} | {time.monotonic() - begin:.0f} s")
    return wrong


def kill(bench, kills, seed):
    """Kills programs so many times; returns how often something was wrong."""
    if not kills:
        return 0
    generator, tally = random.Random(seed), Tally()
    subjects = {
        name: Subject(case, bench.references[name], bench.work, report)
        for name, case in bench.cases.items()
    }
    turn = 0
    while tally.total < kills:
        name = TURNS[turn % len(TURNS)]
        most = min(MAX_IN_A_ROW.get(name, 4), kills - tally.total)
        kill_again_and_again(subjects[name], most, generator, tally, report)
        turn += 1
    for line in tally.table():
        report(line)
    return len(tally.wrong)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="so many, after the faults")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--faults", default="", help="pattern of the names of those to do")
    parser.add_argument(
        "--work", type=pathlib.Path, help="folder for the files; default: one that is removed"
    )
    asked, begin = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        work = asked.work or pathlib.Path(scratch)
        forks.start(work)
        try:
            bench = Bench(work, report)
            wrong = harm(bench, asked.faults) + kill(bench, asked.kills, asked.seed)
        finally:
            forks.end_all()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report(
        f"{wrong or 'nothing'} went wrong in {time.monotonic() - begin:.0f} s "
        f"({used.ru_utime + used.ru_stime:.0f} s of a processor)"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
