"""The worker's half of the protocol: JSON lines on standard input and output.

The first line contains the settings; the worker prepares everything, takes the first steps and
reports that it is ready. Later lines request steps, {"run": 3}, its memory, {"memory": true}, or
its outputs, {"save": PATH}. Between requests it waits for the next line and takes no CPU time. It
ends when its input ends. It uses only the standard library, since it runs in the environments of
all peers.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
import time
import typing


@dataclasses.dataclass
class Work:
    """The work of a side in a comparison.

    Attributes:
        run: function of a number of steps that takes them and returns a dict with the `units` done
            (examples, tokens or bytes), and `seconds` if they differ from the duration of the call.
        notes: text on how the side computes, where that is its own choice.
        save: function of a path that writes the side's outputs, for comparison with the others.
    """

    run: typing.Callable
    notes: str = ""
    save: typing.Callable | None = None


def serve(areas, packages):
    """Answers requests until the input ends.

    Args:
        areas: dict of name -> function from the settings to a Work.
        packages: names of packages whose versions are reported.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output that libraries print

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    settings = json.loads(sys.stdin.readline())
    imported = time.monotonic()
    work = areas[settings["area"]](settings)
    built = time.monotonic()
    warm_up = [_timed(work, 1)["seconds"] for _ in range(settings["warmup_steps"])]
    answer(
        import_s=imported - settings["started"],
        build_s=built - imported,
        first_step_s=warm_up[0],
        step_s=warm_up[-1],
        notes=work.notes,
        versions={name: importlib.metadata.version(name) for name in packages},
    )
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            answer(**_timed(work, request["run"]))
        elif "memory" in request:
            answer(peak_bytes=peak_memory())
        else:
            work.save(request["save"])
            answer(saved=request["save"])


def _timed(work, steps):
    begin = time.perf_counter()
    done = work.run(steps)
    return {"seconds": time.perf_counter() - begin, **done}


def peak_memory():
    """int, peak resident memory of this process in bytes."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
