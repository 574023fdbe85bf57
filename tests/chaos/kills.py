"""Programs that are killed at moments by chance, started again, killed again, and finished."""

import collections
import dataclasses
import functools
import signal
import time

from tests.chaos.forks import Watch, die, program
from tests.chaos.programs import Wrong, check, clear

AT_ANY_TIME = "at any time"
LONGEST_S = 300  # no run takes so long: it hangs
AGAIN = 0.75  # chance that the next run is killed, too


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a program is killed, and how.

    phase: `AT_ANY_TIME`, or one of the program's. number: of the event in the phase. delay: seconds
    after it, or after the start. sent: the signal.
    """

    phase: str
    number: int
    delay: float
    sent: signal.Signals = signal.SIGKILL

    def __str__(self):
        event = "" if self.phase == AT_ANY_TIME else f" #{self.number}"
        return f"{self.sent.name} {self.phase}{event} + {self.delay * 1000:.0f} ms"


class Subject:
    """A program that is killed, and what is known of it undisturbed.

    Args:
        case: of `programs`. work: folder. report: called with a line.

    Attributes:
        seconds: of a run in a fork, imports left out. events: Counter of the events of each phase.
    """

    def __init__(self, case, reference, work, report):
        self.case, self.reference = case, reference
        self.folder = work / f"killed_{case.title}"
        self._log = work / f"{case.title}.log"
        # A fork must do what a process of its own does; and it tells the phases.
        trace = work / f"{case.title}.trace"
        trace.unlink(missing_ok=True)
        clear(self.folder)
        watch = Watch(self.folder, case.phase_of, trace=trace)
        fork = self._start(watch)
        check(fork.wait(LONGEST_S) == 0, f"{case.name} in a fork: {fork.code}, {fork.printed()}")
        case.compare(self.folder, reference)
        self.seconds = fork.seconds
        self.events = collections.Counter(trace.read_text().splitlines())
        phases = ", ".join(f"{phase} ({count})" for phase, count in self.events.items())
        report(f"{case.title}: {self.seconds:.1f} s undisturbed; events: {phases}")

    def _start(self, before):
        return program(self.case.name, self.case.arguments(self.folder), self._log, before)

    def moment(self, generator):
        """A Moment by chance: a third at any time, the others by phase, half of these exactly."""
        if generator.random() < 1 / 3:
            sent = generator.choice((signal.SIGKILL, signal.SIGTERM))
            return Moment(AT_ANY_TIME, 0, generator.uniform(0, self.seconds), sent)
        phase = generator.choice(list(self.events))
        # A run that goes on has fewer of them: the first ones are more likely to be there.
        number = generator.randrange(generator.randint(1, self.events[phase]))
        exactly = generator.random() < 0.5
        return Moment(phase, number, 0.0 if exactly else generator.uniform(1e-4, 0.02))

    def run(self, moment=None):
        """Runs it until the moment, or its end; returns the Process.

        Raises:
            Wrong: it hangs, or ends otherwise than by the signal or well.
        """
        fresh, watch = not any(self.folder.iterdir()), None
        if moment and moment.phase != AT_ANY_TIME:
            act = functools.partial(die, moment.delay)
            watch = Watch(self.folder, self.case.phase_of, moment.phase, moment.number, act)
        fork = self._start(watch)
        if moment and moment.phase == AT_ANY_TIME and fork.wait(moment.delay) is None:
            fork.kill(moment.sent)
        if fork.wait(LONGEST_S) is None:
            fork.kill()
            raise Wrong(f"it still ran after {LONGEST_S} s: {fork.printed()}")
        killed = {128 + signal.SIGTERM, -signal.SIGKILL, -signal.SIGALRM, -signal.SIGTERM}
        check(
            fork.code == 0 or (moment and fork.code in killed),
            f"it ended with {fork.code}: {fork.printed()}",
        )
        if fork.code == 0 and fresh and "stopped and saved" not in fork.printed():
            self.seconds = min(self.seconds, fork.seconds)  # the first one compiled
        return fork


WRONGS = ("unreadable", "does not go on", "differs")


class Tally:
    """What has been found so far.

    Attributes:
        kills, seconds: Counters of (program, phase). wrong: list of (program, phase, one of
            `WRONGS`).
    """

    def __init__(self):
        self.kills, self.seconds = collections.Counter(), collections.Counter()
        self.wrong = []

    @property
    def total(self):
        """int, kills so far."""
        return sum(self.kills.values())

    def table(self):
        """Lines of a table of it."""
        yield f"| program | phase | kills | {' | '.join(WRONGS)} | seconds per kill |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        rows = [(key, [key]) for key in sorted({*self.kills, *(w[:2] for w in self.wrong)})]
        for name, keys in [*rows, (("all", ""), [key for key, _ in rows])]:
            kills = sum(self.kills[key] for key in keys)
            wrongs = [sum(w[:2] in keys and w[2] == what for w in self.wrong) for what in WRONGS]
            mean = sum(self.seconds[key] for key in keys) / max(1, kills)
            yield f"| {' | '.join(map(str, (*name, kills, *wrongs)))} | {mean:.1f} |"


def kill_again_and_again(subject, most, generator, tally, report):
    """Starts a program in an empty folder and kills it some times before it may finish.

    Args:
        subject: Subject. most: int, kills at most. generator: random.Random. tally: Tally.
        report: called with a line for each kill.
    """
    clear(subject.folder)
    before, count, ended, case = 0, 0, False, subject.case
    begin = time.monotonic()
    try:
        while count < most and (count == 0 or generator.random() < AGAIN):
            moment = subject.moment(generator)
            key, doing = (case.title, moment.phase), "does not go on"
            fork = subject.run(moment)
            ended = fork.code == 0 and "stopped and saved" not in fork.printed()
            if ended:  # before the moment came
                break
            count += 1
            tally.kills[key] += 1
            doing = "unreadable"
            text, before = case.found(subject.folder, before)
            seconds, begin = time.monotonic() - begin, time.monotonic()
            tally.seconds[key] += seconds
            report(
                f"{tally.total} | {case.title} | {moment} | after {fork.seconds:.2f} s | {text} | "
                f"{seconds:.1f} s"
            )
            ended = before and not case.goes_on
            if ended:  # and would be refused if it were started again
                break
        doing = "does not go on"
        if not ended:
            subject.run()
        doing = "differs"
        case.compare(subject.folder, subject.reference)
        tally.seconds[key] += time.monotonic() - begin
        report(f"{case.title} | finished after {count} kills: as if undisturbed")
    except Exception as error:  # of kbert in a fork, or of what looks at what it left
        tally.wrong.append((*key, doing))
        report(f"WRONG | {case.title} | {key[1]} | {doing} | {type(error).__name__}: {error}")
