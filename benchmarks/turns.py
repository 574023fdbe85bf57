"""Comparisons: every side in a process of its own that stays warm, timed in turns.

In each round every side runs for some seconds while the others wait for input, which takes no CPU
time (it is measured, and said if it does). Figures are medians over the rounds with the lowest and
highest; how much faster kbert is is the median of the ratios within each round, so that a machine
whose speed drifts does not count for or against anybody. All processes are bound to as many CPUs as
they have threads.

"gemm" is no library: it computes the matrix products of the row alone, in TensorFlow (oneDNN). The
share of the peak is what a side reaches of that, by the operations of `benchmarks.flops`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTLE_S = 0.3  # between two sides: threads that wait by spinning have gone to sleep by then


@dataclasses.dataclass(frozen=True)
class Row:
    """What is compared.

    Attributes:
        name, detail: for a person. settings: dict for the workers, `area` among them. sides: who
            takes part.
        unit: of work, in the plural. scale: what the worker counts in one, such as 1e6 bytes in a
            "MB". latency: show the time of a unit, not units per second.
        flops: of one that the worker counts. products: of the model, a list of
            `benchmarks.flops.Product`, whose speed alone is the peak.
    """

    name: str
    detail: str
    settings: dict
    sides: tuple
    unit: str
    flops: float | None = None
    products: list | None = None
    latency: bool = False
    scale: float = 1.0


class WorkerError(Exception):
    """A worker could not be started, or died."""


class Worker:
    """A worker process; see `benchmarks.worker`.

    Args:
        command: list of str. settings: dict. threads: of the process, and the CPUs it is bound to.

    Attributes:
        ready: dict of what it said when it was ready.
    """

    def __init__(self, command, settings, threads):
        if not pathlib.Path(command[0]).exists():
            raise WorkerError(f"no {command[0]}; benchmarks/peers.sh makes it")
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=os.environ | environment(threads),
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads]),
        )
        self.idle_share = 0.0
        try:
            self.ready = self.ask(started=time.monotonic(), **settings)
        except BaseException:
            self.__exit__()
            raise
        self._idle = self.cpu_seconds(), time.monotonic()

    def ask(self, **question):
        """The answer to a question, a dict.

        Raises:
            WorkerError: it died; the message has the end of what it wrote.
        """
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise WorkerError("; ".join([f"ended with {self._process.wait()}", *lines]))
        return json.loads(line)

    def round(self, seconds):
        """Runs for about so many seconds, one step at least.

        Returns:
            dict of the answer, and of `rate` and `foreign_share`; see `measure`.
        """
        cpu, all_cpu, begin = self.cpu_seconds(), busy_seconds(), time.monotonic()
        waited = begin - self._idle[1]
        self.idle_share = max(self.idle_share, (cpu - self._idle[0]) / max(waited, 1.0))
        answer = self.ask(run=max(1, round(seconds / self.ready["step_s"])))
        self._idle = self.cpu_seconds(), time.monotonic()
        foreign = (busy_seconds() - all_cpu) - (self._idle[0] - cpu)
        share = max(0.0, foreign / (self._idle[1] - begin) / os.cpu_count())
        return answer | {"rate": answer["units"] / answer["seconds"], "foreign_share": share}

    def cpu_seconds(self):
        """CPU time that the process has taken."""
        fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                file.close()


def busy_seconds():
    """CPU time that the machine has spent on anything, all CPUs together."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, *others = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def environment(threads):
    """Variables that set the threads of every library, and keep GPUs out of it.

    OpenMP's threads, which are torch's, sleep while they wait for each other: by default they spin,
    which made torch up to a hundred times slower where another process wanted a CPU. On a quiet
    machine OMP_WAIT_POLICY=ACTIVE in the environment shows what the default would give.
    """
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {name: str(threads) for name in names} | {
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true",
    }


def measure(row, commands, threads, rounds, round_seconds, say=lambda line: None, folder=None):
    """Measures a row.

    Args:
        row: Row. commands: dict of side -> list of str. threads: of each side. rounds: int.
        round_seconds: of a side in a round. say: function of a line, for progress.
        folder: where every side saves what it computes, to compare; None: they do not.

    Returns:
        dict of side -> dict of `rates` (a number a round), `ready`, `peak_bytes`, `idle_share`, of
        a core while it waited, `foreign_share` of each round, of the machine, that was taken by
        processes which are none of the comparison, and `last`, the last answer; or of `failed`, why
        not.
    """
    found, settings = {}, row.settings
    sides = list(row.sides)
    if row.products:
        settings = settings | {"products": row.products}
        sides.append("gemm")
    with contextlib.ExitStack() as stack:
        workers = {}

        def attempt(side, act):
            try:
                return act()
            except WorkerError as error:
                workers.pop(side, None)
                found[side] = {"failed": str(error)}
                say(f"{row.name}: {side} failed: {error}")

        for side in sides:
            say(f"{row.name}: starting {side}")
            worker = attempt(side, lambda s=side: Worker(commands[s], settings, threads))
            if worker:
                workers[side] = stack.enter_context(worker)
                found[side] = {"rates": [], "foreign_share": [], "ready": worker.ready}
        for number in range(rounds):
            for side, worker in list(workers.items()):
                time.sleep(SETTLE_S)
                answer = attempt(side, lambda w=worker: w.round(round_seconds))
                if answer:
                    found[side]["rates"].append(answer.pop("rate"))
                    found[side]["foreign_share"].append(answer.pop("foreign_share"))
                    found[side]["last"] = answer
            shown = ", ".join(f"{side} {found[side]['rates'][-1]:,.4g}" for side in workers)
            say(f"{row.name}: round {number + 1}/{rounds}: {shown} a second")
        for side, worker in list(workers.items()):
            found[side]["idle_share"] = worker.idle_share
            found[side] |= attempt(side, lambda w=worker: w.ask(memory=True)) or {}
            if folder and side != "gemm":
                path = f"{folder}/{side}.npy"
                found[side] |= attempt(side, lambda w=worker, p=path: w.ask(save=p)) or {}
    return found
