"""Comparisons: every side runs in a separate warm process; sides are timed in turns.

In each round, every side runs for some seconds while the others wait for input, which takes no CPU
time (this is measured, and reported if it does). Results are medians over the rounds with minimum
and maximum; the speedup of kbert is the median of the ratios within each round, so that drift of
the machine's speed does not favor any side. All processes are bound to as many CPUs as they have
threads.

"gemm" is not a library: it computes only the matrix products of the row, in TensorFlow (oneDNN).
The share of the peak is a side's speed relative to it, by the operations of `benchmarks.flops`.
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
SETTLE_S = 0.3  # pause between two sides, after which spinning threads are asleep


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a comparison.

    Attributes:
        name, detail: text for the table. settings: dict for the workers, including `area`. sides:
            names of the sides.
        unit: of work, in the plural. scale: number of the worker's counts per unit, such as 1e6
            bytes in a "MB". latency: show the time per unit, not units per second.
        flops: operations per count of the worker. products: of the model, a list of
            `benchmarks.flops.Product`; their speed alone is the peak.
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
    """A worker could not be started, or ended unexpectedly."""


class Worker:
    """A worker process; see `benchmarks.worker`.

    Args:
        command: list of str. settings: dict. threads: number of threads, and of CPUs it is bound
            to.

    Attributes:
        ready: dict that it sent when it was ready.
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
        """Sends a request; returns the response, a dict.

        Raises:
            WorkerError: the worker ended; the message contains the end of its output.
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
        """Runs for about this many seconds, at least one step.

        Returns:
            dict of the response, with `rate` and `foreign_share`; see `measure`.
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
        """Returns the CPU time of the process in seconds."""
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
    """Returns the total CPU time of the machine in seconds, over all CPUs."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, *others = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def environment(threads):
    """Environment variables that set the threads of every library and hide GPUs.

    OpenMP threads, which torch uses, sleep while they wait for each other: by default they spin,
    which made torch up to a hundred times slower when another process needed a CPU. On an idle
    machine, OMP_WAIT_POLICY=ACTIVE in the environment shows the effect of the default.
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
        folder: where every side saves its outputs for comparison; None: nothing is saved.

    Returns:
        dict of side -> dict of `rates` (one per round), `ready`, `peak_bytes`, `idle_share` (the
        fraction of a core used while waiting), `foreign_share` (the fraction of the machine used by
        other processes, per round) and `last`, the last response; or of `failed`, the reason.
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
