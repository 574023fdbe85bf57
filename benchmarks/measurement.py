"""Measures libraries in turns; each runs in a separate process that has been warmed up.

In each round, every library runs for some seconds while the others wait for input. A waiting
library should take no CPU time; if it does, the report shows it. Results are medians over the
rounds with minimum and maximum. kbert's speedup is the median over the rounds of the ratio within a
round, so that drift of the machine's speed does not favor any library. Each process is bound to as
many CPUs as it has threads.

"gemm" is not a library: it computes only the matrix products of the row, in TensorFlow (oneDNN).
Its speed is the peak of the row. `benchmarks.flops` counts the operations.
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
SETTLE_S = 0.3  # pause between two libraries, until spinning threads are asleep


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a comparison.

    Attributes:
        name, detail: text for the table.
        settings: dict for the workers, including `area`.
        libraries: names of the libraries.
        unit: unit of work, in the plural, such as "texts".
        flops: operations per item that the worker counts; None: not shown.
        products: the matrix products of the model, a list of `benchmarks.flops.Product`; None: the
            peak is not measured.
        latency: whether to show the time per unit instead of units per second.
        scale: number of the worker's items per unit, such as 1e6 bytes per "MB".
    """

    name: str
    detail: str
    settings: dict
    libraries: tuple
    unit: str
    flops: float | None = None
    products: list | None = None
    latency: bool = False
    scale: float = 1.0


class WorkerError(Exception):
    """A worker did not start, or exited unexpectedly."""


class Worker:
    """A worker process; see `benchmarks.worker`.

    Args:
        command: list of str.
        settings: dict of the first request.
        threads: number of threads, and of CPUs that the process is bound to.

    Attributes:
        ready: the dict that the worker sent when it was ready.
        idle_share: largest fraction of a core that the process used while it waited.

    Raises:
        WorkerError: the program does not exist, or the process did not start.
    """

    def __init__(self, command, settings, threads):
        if not pathlib.Path(command[0]).exists():
            raise WorkerError(f"{command[0]} does not exist; create it with benchmarks/peers.sh")
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
            self.ready = self.request(started=time.monotonic(), **settings)
        except BaseException:
            self.__exit__()
            raise
        self._idle = self.cpu_seconds(), time.monotonic()

    def request(self, **message):
        """Sends a request; returns the response, a dict.

        Raises:
            WorkerError: the worker exited; the message contains the end of its output.
        """
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise WorkerError("; ".join([f"exited with {self._process.wait()}", *lines]))
        return json.loads(line)

    def round(self, seconds):
        """Takes steps for about `seconds` seconds, at least one step.

        Returns:
            the worker's response, a dict, with `rate`, the items per second, and `foreign_share`,
            the fraction of the machine used by other processes.
        """
        cpu, all_cpu, begin = self.cpu_seconds(), busy_seconds(), time.monotonic()
        waited = begin - self._idle[1]
        self.idle_share = max(self.idle_share, (cpu - self._idle[0]) / max(waited, 1.0))
        response = self.request(run=max(1, round(seconds / self.ready["step_s"])))
        self._idle = self.cpu_seconds(), time.monotonic()
        foreign = (busy_seconds() - all_cpu) - (self._idle[0] - cpu)
        share = max(0.0, foreign / (self._idle[1] - begin) / os.cpu_count())
        return response | {"rate": response["units"] / response["seconds"], "foreign_share": share}

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
    """Returns the CPU time in seconds that all processes have used since the machine was booted."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, *others = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def environment(threads):
    """Returns environment variables that set the threads of every library and hide the GPUs.

    torch uses OpenMP, whose threads spin by default while they wait for each other. This made torch
    up to a hundred times slower when another process needed a CPU, so they sleep here. Set
    OMP_WAIT_POLICY=ACTIVE to measure the default on an idle machine.
    """
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {name: str(threads) for name in names} | {
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true",
    }


def measure(row, commands, threads, rounds, round_seconds, log=lambda line: None, folder=None):
    """Measures a row.

    Args:
        row: Row.
        commands: dict of library -> list of str.
        threads: number of threads of each library.
        rounds: number of rounds.
        round_seconds: seconds that each library runs in a round.
        log: called with a line about the progress.
        folder: folder in which each library saves its outputs for comparison; None: not saved.

    Returns:
        dict of library -> dict of `rates` (one per round), `ready`, `peak_bytes`, `idle_share` (the
        fraction of a core used while waiting), `foreign_share` (the fraction of the machine used by
        other processes, per round), `last` (the last response) and, with a folder, `saved` (the
        path of the outputs). If the library failed, the dict has only `failed` (the reason).
    """
    results, settings = {}, row.settings
    libraries = list(row.libraries)
    if row.products:
        settings = settings | {"products": row.products}
        libraries.append("gemm")
    with contextlib.ExitStack() as stack:
        workers = {}

        def attempt(library, act):
            try:
                return act()
            except WorkerError as error:
                workers.pop(library, None)
                results[library] = {"failed": str(error)}
                log(f"{row.name}: {library} failed: {error}")

        for library in libraries:
            log(f"{row.name}: starting {library}")
            worker = attempt(library, lambda s=library: Worker(commands[s], settings, threads))
            if worker:
                workers[library] = stack.enter_context(worker)
                results[library] = {"rates": [], "foreign_share": [], "ready": worker.ready}
        for number in range(rounds):
            for library, worker in list(workers.items()):
                time.sleep(SETTLE_S)
                response = attempt(library, lambda w=worker: w.round(round_seconds))
                if response:
                    results[library]["rates"].append(response.pop("rate"))
                    results[library]["foreign_share"].append(response.pop("foreign_share"))
                    results[library]["last"] = response
            shown = ", ".join(
                f"{library} {results[library]['rates'][-1]:,.4g}" for library in workers
            )
            log(f"{row.name}: round {number + 1}/{rounds}: {shown} per second")
        for library, worker in list(workers.items()):
            results[library]["idle_share"] = worker.idle_share
            results[library] |= attempt(library, lambda w=worker: w.request(memory=True)) or {}
            if folder and library != "gemm":
                path = f"{folder}/{library}.npy"
                results[library] |= (
                    attempt(library, lambda w=worker, p=path: w.request(save=p)) or {}
                )
    return results
