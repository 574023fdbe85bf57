"""Fuzzes a target: python -m tests.fuzz TARGET --seconds=60

With atheris (pip install atheris) what is covered of kbert guides the changes; without it, changed
seeds are tried. A fault ends the run; the input is left in FOLDER/TARGET.fault, and
--input=FOLDER/TARGET.fault tries it again.
"""

import argparse
import importlib
import pathlib
import random
import sys
import time

from . import harness
from .regressions import REGRESSIONS

MODULES = ("data", "weights", "requests")


def load_targets():
    """dict of name -> Target."""
    for name in MODULES:
        importlib.import_module(f".{name}", __package__)
    return harness.TARGETS


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", help="without it, their names are listed")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=".fuzz", help="where inputs that were found are kept")
    parser.add_argument("--input", help="try the input in this file, and no other")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    asked = parser.parse_args()
    atheris = None if asked.plain or asked.input or not asked.target else _atheris()
    if atheris:
        with atheris.instrument_imports(include=["kbert"]):
            targets = load_targets()
    else:
        targets = load_targets()
    names = f"targets: {', '.join(targets)}"
    if not asked.target:
        print(names)
        return
    if asked.target not in targets:
        sys.exit(names)
    target = targets[asked.target]
    folder = pathlib.Path(asked.folder)
    with harness.checked(target) as check:
        if asked.input:
            print("taken" if check(pathlib.Path(asked.input).read_bytes()) else "refused")
        elif atheris:
            _guided(atheris, target, check, folder, asked)
        else:
            _plain(target, check, folder, asked)


def _atheris():
    try:
        import atheris
    except ImportError:
        return None
    return atheris


def _starts(target):
    """List of the inputs to begin with."""
    return target.seeds() + [data for name, data in REGRESSIONS if name == target.name]


def _plain(target, check, folder, asked):
    """Changes seeds at random."""
    rng, seeds, count = random.Random(asked.seed), _starts(target), 0
    end = time.monotonic() + asked.seconds
    while time.monotonic() < end:
        data = harness.mutated(rng.choice(seeds), seeds, rng)
        _keep(check, data, folder / f"{target.name}.fault")
        count += 1
    print(f"{target.name}: {count:,} inputs, no fault")


def _keep(check, data, path):
    """Checks an input, and keeps it if it is a fault."""
    try:
        return check(data)
    except harness.Fault:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"the input is in {path}", file=sys.stderr)
        raise


def _guided(atheris, target, check, folder, asked):
    """Runs libFuzzer, from the seeds and what it has found before."""
    seeds, found = _starts(target), folder / target.name
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (found / f"seed_{number:03d}").write_bytes(seed)

    def change(data, most, seed):
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, most)
        return harness.mutated(data, seeds, rng, most)

    arguments = [
        *(sys.argv[0], str(found), f"-max_len={harness.MAX_INPUT}", f"-seed={asked.seed + 1}"),
        *(
            f"-max_total_time={asked.seconds}",
            "-rss_limit_mb=0",
            "-timeout=0",
            "-print_final_stats=1",
        ),
        f"-artifact_prefix={folder}/",
    ]
    path = folder / f"{target.name}.fault"
    atheris.Setup(arguments, lambda data: _keep(check, data, path) and None, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
