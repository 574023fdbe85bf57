"""What is killed and harmed, and what an undisturbed process makes."""

import re

from tests.chaos.forks import program
from tests.chaos.programs import Export, Prepare, Pretrain, alone, check, clear


class Bench:
    """The programs, and the results of undisturbed processes of their own.

    Args:
        work: folder. report: called with a line.

    Attributes:
        cases: title -> of `programs`. references: title -> folder.
    """

    def __init__(self, work, report):
        self.work = work
        pretrain = Pretrain(work, "pretrain")
        half = {"precision": "mixed_float16", "optimizer": "lamb", "accumulation_steps": 3}
        source = work / "undisturbed_pretrain" / "run" / "pretrain" / "final"
        cases = [pretrain, Pretrain(work, "pretrain_float16", **half), Prepare(work)]
        cases.append(Export(source))
        self.cases = {case.title: case for case in cases}
        self.references = {}
        for case in cases:
            folder = self.references[case.title] = clear(work / f"undisturbed_{case.title}")
            printed = alone(case.name, case.arguments(folder))
            report(f"{case.title}, undisturbed: {printed.splitlines()[-1]}")

    def run(self, case, folder, before=None, seconds=120, more=()):
        """A Process that has run a program to its end. more: arguments that are added.

        Raises:
            Wrong: it takes longer than so many seconds.
        """
        fork = self.begin(case, folder, before, more)
        code = fork.wait(seconds)
        if code is None:
            fork.kill()
        check(code is not None, f"{case.name} still ran after {seconds} s: {fork.printed()}")
        return fork

    def begin(self, case, folder, before=None, more=()):
        """A Process that runs a program."""
        log = self.work / f"fault_{case.title}_{len(list(self.work.glob('fault_*')))}.log"
        return program(case.name, [*case.arguments(folder), *more], log, before)

    def finish(self, case, folder, more=()):
        """Runs a program again, which must go on as if nothing had been."""
        fork = self.run(case, folder, more=more)
        check(fork.code == 0, f"the same command again ended with {fork.code}: {fork.printed()}")
        case.compare(folder, self.references[case.title])


def the_line(fork, pattern):
    """The one line that a program has ended with, which must match a pattern."""
    printed = fork.printed()
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    clear_words = fork.code == 2 and len(lines) == 1 and "Traceback" not in printed
    check(clear_words, f"status {fork.code} and not one line: {printed[-3000:]}")
    check(re.search(pattern, lines[0]), f"{pattern!r} is not in: {lines[0]}")
    return lines[0]
