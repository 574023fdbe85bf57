"""Faults of everything but disks and files: clocks, second processes, numbers, memory, workers."""

import json
import os
import random
import re
import resource
import signal
import time

from tests.chaos.bench import the_line
from tests.chaos.forks import Watch, die, halt
from tests.chaos.programs import Prepare, check, clear

DAY_S = 86400.0


def second(title, phase, number):
    """A fault: a second process starts while the first one is at an event of a phase."""

    def fault(bench):
        case, folder = bench.cases[title], clear(bench.work / "second")
        first = bench.begin(case, folder, Watch(folder, case.phase_of, phase, number, halt))
        check(first.halted(60), f"the first one did not come to the moment: {first.printed()}")
        line = the_line(bench.run(case, folder), rf"is in use by process {first.pid} on ")
        first.go_on()
        check(first.wait(120) == 0, f"the first one ended with {first.code}: {first.printed()}")
        case.compare(folder, bench.references[title])
        return f"{line} | the first one ended as if nothing had been"

    return fault


def _jump():
    """Makes every clock that Python programs read jump by days, and now and then stand still."""
    import tensorflow as tf

    generator = random.Random(0)
    for name in ("time", "monotonic", "perf_counter"):
        real, state = getattr(time, name), {"offset": 0.0, "last": 0.0}

        def jumping(real=real, state=state):
            chance = generator.random()
            if chance < 0.2:
                state["offset"] += generator.uniform(-DAY_S, DAY_S)
            if chance > 0.2:
                state["last"] = real() + state["offset"]
            return state["last"]

        setattr(time, name, jumping)
    timestamp = tf.timestamp
    tf.timestamp = lambda: timestamp() + tf.random.uniform((), -DAY_S, DAY_S, tf.float64)


def clocks(title):
    """A fault: clocks jump back and forth by days while a program runs."""

    def fault(bench):
        case, folder = bench.cases[title], clear(bench.work / "clocks")
        fork = bench.run(case, folder, _jump)
        printed = fork.printed()
        check(fork.code == 0, f"it ended with {fork.code}: {printed}")
        times = re.findall(r"ETA (.*)", printed)
        sane = [re.fullmatch(r"(\d+:)?\d+:\d\d( \| \d+% of .*)?", text) for text in times]
        check(times and all(sane), f"no time to come: {times}")
        rows = map(json.loads, (folder / "run/pretrain/metrics.jsonl").read_text().splitlines())
        for row in rows:
            wait, speed = row.get("input_wait", 0), row.get("tokens_per_second", 1)
            check(0 <= wait <= 1 and speed > 0, f"no share or speed: {row}")
        case.compare(folder, bench.references[title])
        return f"{len(times)} times to come, all sane; the weights as if nothing had been"

    return fault


def future_files(bench):
    """Text that is from tomorrow, by its time of change."""
    case, folder = bench.cases["pretrain"], clear(bench.work / "future")
    paths = list((bench.work / "text").iterdir())
    before = [path.stat().st_mtime for path in paths]
    try:
        for path in paths:
            os.utime(path, (time.time() + DAY_S, time.time() + DAY_S))
        bench.finish(case, folder)
        fork = bench.run(case, folder)
        check("preparing" not in fork.printed(), "the text was prepared again")
    finally:
        for path, when in zip(paths, before, strict=True):
            os.utime(path, (when, when))
    return "as if nothing had been, and prepared once"


def _spoil(at_step):
    """Makes the gradient of a step not finite."""
    import numpy as np
    import tensorflow as tf

    from kbert.train.step import TrainStep

    gradients = TrainStep._slice_gradients

    def spoiled(self, features, count, step, slice_number):
        sums, found = gradients(self, features, count, step, slice_number)
        return sums, [found[0] * tf.where(step + 1 == at_step, np.nan, 1.0), *found[1:]]

    TrainStep._slice_gradients = spoiled


def not_finite(bench):
    """A gradient that is NaN at step 23, by default."""
    case, folder = bench.cases["pretrain"], clear(bench.work / "nan")
    line = the_line(
        bench.run(case, folder, lambda: _spoil(23)),
        r"not finite at step 23\. .*--nonfinite=skip; the last checkpoint is \S+/step_00000020\.$",
    )
    bench.finish(case, folder)
    return f"{line} | then as if nothing had been"


def not_finite_skipped(bench):
    """The same with --nonfinite=skip."""
    case, folder = bench.cases["pretrain"], clear(bench.work / "nan")
    fork = bench.run(case, folder, lambda: _spoil(23), more=["--nonfinite=skip"])
    (line,) = [line for line in fork.printed().splitlines() if line.startswith("note: ")]
    check(fork.code == 0 and "not finite at step 23: skipped" in line, fork.printed())
    rows = map(json.loads, (folder / "run/pretrain/metrics.jsonl").read_text().splitlines())
    skipped = [row["step"] for row in rows if row.get("skipped_steps")]
    check(skipped == [23], f"skipped at {skipped}")
    return line


def _stop_at(step):
    """Has this process sent SIGTERM after a step, before its evaluation."""
    from kbert.train.trainer import Trainer

    log = Trainer._log

    def log_and_stop(self):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return log(self)

    Trainer._log = log_and_stop


def stopped_before_an_evaluation(bench):
    """A run is stopped just before an evaluation, goes on, and is killed just after it."""
    case, folder = bench.cases["pretrain"], clear(bench.work / "stopped")
    fork = bench.run(case, folder, lambda: _stop_at(16))
    check("stopped at step 16; the checkpoint is saved" in fork.printed(), fork.printed())
    fork = bench.run(case, folder, Watch(folder, case.phase_of, "best: writing", 3, die))
    check(fork.code == -signal.SIGKILL, f"it ended with {fork.code}: {fork.printed()}")
    bench.finish(case, folder)
    return "as if nothing had been"


def _limit_memory():
    """Lets this process take 6 GB more of address space than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + 6 * 10**9
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def out_of_memory(bench):
    """Attention weights of 6.4 GB, which this process may not have."""
    case, folder = bench.cases["pretrain"], clear(bench.work / "memory")
    architecture = bench.work / "long.yaml"
    text = (bench.work / "text" / "tiny.yaml").read_text()
    text = text.replace("max_position_embeddings: 32", "max_position_embeddings: 512")
    architecture.write_text(text.replace("num_attention_heads: 2", "num_attention_heads: 8"))
    large = ["--global_batch_size=5000", "--max_seq_length=512", f"--bert_config={architecture}"]
    return the_line(
        bench.run(case, folder, _limit_memory, more=large),
        r"out of memory after step 0 \(OOM when allocating tensor with shape\[5000,8,78,512\].*"
        r"Use --accumulation_steps=2\b.*--remat",
    )


def killed_worker(bench):
    """A worker of a parallel prepare is killed, then the program itself."""
    case, folder = Prepare(bench.work, documents=20_000, processes=2), clear(bench.work / "workers")
    reference = clear(bench.work / "undisturbed_workers")
    bench.run(case, reference, more=["--processes=1"])
    first = bench.begin(case, folder)
    os.kill(_workers(first)[0], 9)
    line = (
        ""
        if first.wait(60) is None
        else the_line(first, "a worker process was killed.*--processes=1")
    )
    check(
        line and not list(folder.iterdir()), f"it ended with {first.code}: {list(folder.iterdir())}"
    )
    again = bench.begin(case, folder)
    _workers(again)
    again.kill()
    again.wait(10)
    deadline = time.monotonic() + 10
    while again.children() and time.monotonic() < deadline:
        time.sleep(0.1)
    check(not again.children(), f"workers {again.children()} go on without their program")
    fork = bench.run(case, folder)
    check(fork.code == 0, fork.printed())
    case.compare(folder, reference)
    return f"{line} | a killed program leaves no workers; then as if nothing had been"


def _workers(fork):
    """Pids of the workers, once they write."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pids = [pid for pid in fork.children() if _writes(pid)]
        if len(pids) == 2:
            return pids
        time.sleep(0.05)
    check(False, f"no workers: {fork.printed()}")


def _writes(pid):
    try:
        names = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(name.endswith(".ids") for name in names)


MISHAPS = {
    "second process, pretrain": second("pretrain", "checkpoint: writing", 0),
    "second process, prepare": second("prepare", "shards", 1),
    "second process, export": second("export", "answers of a process of its own", 0),
    "clocks that jump, pretrain": clocks("pretrain"),
    "text from tomorrow": future_files,
    "a gradient that is not finite": not_finite,
    "a gradient that is not finite, skipped": not_finite_skipped,
    "stopped before an evaluation, killed after it": stopped_before_an_evaluation,
    "out of memory": out_of_memory,
    "killed workers": killed_worker,
}
