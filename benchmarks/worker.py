"""The worker's side of the protocol: JSON lines on standard input and output.

The first line contains the settings. The worker builds its model, takes the first steps and reports
that it is ready. Each later line is a request: {"run": 3} takes three steps, {"memory": true}
returns the peak memory, and {"save": PATH} saves the outputs. Between requests, the worker waits
for the next line and uses no CPU time. It exits when its input ends. This module uses only the
standard library, because it runs in the environments of all libraries.
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
    """The work of a library in a comparison.

    Attributes:
        run: function that takes a number of steps and returns a dict with `units`, the number of
            examples, tokens or bytes, and `seconds` if it differs from the duration of the call.
        notes: text about choices that differ between the libraries, such as the padding.
        save: function that writes the library's outputs to a path, for comparison with the others.
    """

    run: typing.Callable
    notes: str = ""
    save: typing.Callable | None = None


def serve(areas, packages):
    """Serves requests until the input ends.

    Args:
        areas: dict of name -> function from the settings to a Work.
        packages: names of the installed packages whose versions are reported.
    """
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries print to standard error instead

    def respond(**values):
        print(json.dumps(values), file=responses, flush=True)

    settings = json.loads(sys.stdin.readline())
    imported = time.monotonic()
    work = areas[settings["area"]](settings)
    built = time.monotonic()
    warm_up = [_timed(work, 1)["seconds"] for _ in range(settings["warmup_steps"])]
    respond(
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
            respond(**_timed(work, request["run"]))
        elif "memory" in request:
            respond(peak_bytes=peak_memory())
        else:
            work.save(request["save"])
            respond(saved=request["save"])


def _timed(work, steps):
    begin = time.perf_counter()
    done = work.run(steps)
    return {"seconds": time.perf_counter() - begin, **done}


def peak_memory():
    """Returns the peak resident memory of this process in bytes."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
