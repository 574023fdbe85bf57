"""Processes to be killed, many of them: forks of one that has imported TensorFlow and no more.

Importing takes longer than what is killed here runs. This process imports TensorFlow and kbert and
computes nothing: it has one thread and no device, and each fork starts TensorFlow for itself, as a
process of its own does.
"""

import gc
import os
import pathlib
import pickle
import runpy
import select
import signal
import sys
import tempfile
import time
import traceback

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "subprocess.Popen"}
_sessions = set()  # of processes that may still run


def start(work):
    """Imports what the forks need.

    Args:
        work: folder; what XLA compiles for one fork is kept there for the others, and so are the
            temporary files of processes that are killed.

    Raises:
        RuntimeError: an import has started a thread, which a fork would lack.
    """
    from kbert.utils import program

    os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={work}/compiled"
    os.environ["TMPDIR"] = tempfile.tempdir = str(work / "temporary")
    os.makedirs(tempfile.tempdir, exist_ok=True)
    program.import_tensorflow()
    import kbert.data
    import kbert.serving.saved_model
    import kbert.train  # noqa: F401

    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"{threads} threads run after the imports, and a fork has one of them")
    gc.freeze()  # the pages stay shared


class Process:
    """A fork that calls a function.

    Args:
        act: function of nothing; what it raises is printed. log: file for what it prints.

    Attributes:
        pid: int, and number of its session. begin: time.monotonic() of the start.
        code: exit status, negative for a signal, None while it runs. seconds: float, how long.
    """

    def __init__(self, act, log):
        sys.stdout.flush()
        self.log, self.begin, self.code = pathlib.Path(log), time.monotonic(), None
        self.pid = os.fork()
        if not self.pid:
            _act(act, log)
        _sessions.add(self.pid)
        self._handle = os.pidfd_open(self.pid)

    def wait(self, seconds):
        """Exit status, or None if it still runs after so many seconds."""
        if self.code is None and select.select([self._handle], [], [], max(0, seconds))[0]:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.seconds = time.monotonic() - self.begin
            os.close(self._handle)
            if not _session(self.pid):
                _sessions.discard(self.pid)
        return self.code

    def kill(self, number=signal.SIGKILL):
        """Sends a signal."""
        os.kill(self.pid, number)

    def halted(self, seconds):
        """Waits until it has stopped by `halt`; whether it has."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.wait(0.01) is None:
            if pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2][1] == "T":
                return True
        return False

    def go_on(self):
        """Ends `halt`."""
        self.kill(signal.SIGCONT)

    def children(self):
        """Pids of the processes that it has started and that still run."""
        return [pid for pid in _session(self.pid) if pid != self.pid]

    def printed(self):
        """What it and what it has started have printed."""
        return self.log.read_text(errors="replace")


def _act(act, log):
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(target, stream)
        act()
        status = 0
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _session(number):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
            except OSError:
                continue  # it has just ended
            state, _, _, session = stat.rpartition(")")[2].split()[:4]
            if int(session) == number and state != "Z":
                found.append(int(entry))
    return found


def end_all():
    """Kills what still runs of all that was started here."""
    for session in _sessions:
        for pid in _session(session):
            os.kill(pid, signal.SIGKILL)


def program(name, arguments, log, before=None):
    """Process that runs `python -m NAME ARGUMENTS`. before: called in it first."""

    def act():
        if before:
            before()
        sys.argv = [name, *map(str, arguments)]
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return Process(act, log)


def result_of(function, *arguments, seconds=120):
    """What a function returns that is called in a fork.

    Raises:
        RuntimeError: it raised, ended or did not end; with what it printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer, log = pathlib.Path(scratch) / "answer", pathlib.Path(scratch) / "log"
        process = Process(lambda: answer.write_bytes(pickle.dumps(function(*arguments))), log)
        if process.wait(seconds) is None:
            process.kill()
        if process.code != 0:
            raise RuntimeError(f"{function} ended with {process.code}: {process.printed()}")
        return pickle.loads(answer.read_bytes())


class Watch:
    """Sees what its process does to files below a folder, and acts at a chosen moment.

    Calling it, in that process, installs it. It sees Python's own calls, each before it is made.

    Args:
        root: folder. phase_of: function of the name of an event of `EVENTS` and the path below
            the root; gives the phase of the program, or None.
        phase, number: when to act: before event `number`, from 0, of this phase; None: never.
        act: what to do then, a function of nothing.
        trace: file to list the phases in, one a line, or None.
    """

    def __init__(self, root, phase_of, phase=None, number=0, act=None, trace=None):
        self._root, self._phase_of = f"{root}/", phase_of
        self._phase, self._left, self._act, self._trace = phase, number, act, trace

    def __call__(self):
        if self._trace:
            self._trace = os.open(self._trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sys.addaudithook(self._see)

    def _see(self, event, arguments):
        if event not in EVENTS or (event == "open" and not arguments[2] & os.O_ACCMODE):
            return
        path = _path(event, arguments)
        if not path.startswith(self._root):
            return
        phase = self._phase_of(event, path.removeprefix(self._root))
        if phase and self._trace:
            os.write(self._trace, f"{phase}\n".encode())
        if phase and phase == self._phase:
            self._left -= 1
            if self._left == -1:
                self._act()


def die(delay=0.0):
    """Ends this process as SIGKILL does, at once or after so many seconds."""
    if delay:  # what SIGALRM does by default: nothing is tidied up
        signal.setitimer(signal.ITIMER_REAL, delay)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def halt():
    """Stops this process until it is told to go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _path(event, arguments):
    """The path that an event is about; of a new process, the last of its arguments."""
    if event == "subprocess.Popen":
        return str(arguments[1][-1])
    path = arguments[0]
    if isinstance(path, int):
        return ""
    path = os.fsdecode(path)
    folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    if isinstance(folder, int) and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)
