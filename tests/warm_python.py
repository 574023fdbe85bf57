"""A Python interpreter that starts with TensorFlow and kbert already imported.


Importing TensorFlow takes longer than most programs that the tests start. `PYTHON` replaces
`sys.executable`: it takes `-m MODULE`, `-c CODE` or a script, with arguments, and forwards standard
streams, signals and the exit status. Its process is not the program's process, so `/proc/PID` does
not describe the program. Environment variables that TensorFlow or Keras read at import, such as
KERAS_BACKEND, have no effect. Tests of these, and of startup, use `sys.executable`.

The first command starts a server that imports the packages but computes nothing, since TensorFlow
cannot be used after a fork once it is initialized. The server forks a process for every command and
ends with the tests.
"""

import contextlib
import fcntl
import os
import pathlib
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time

PYTHON = os.environ.get("WARM_PYTHON", sys.executable)
START_SECONDS = 120
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def install(folder):
    """Writes the command `PYTHON`; its programs end when this process ends."""
    path = pathlib.Path(folder) / "python"
    # -I -S: the launcher needs only the standard library and starts in 20 ms.
    launcher = f"{sys.executable} -I -S {pathlib.Path(__file__).resolve()} {os.getpid()} {folder}"
    path.write_text(f'#!/bin/sh\nexec {launcher} "$@"\n')
    path.chmod(0o700)
    global PYTHON
    PYTHON = os.environ["WARM_PYTHON"] = str(path)


def launch(owner, folder, *arguments):
    """Runs a command in a fork of a folder's server; exits with the status of the fork."""
    connection = _connect(owner, pathlib.Path(folder))
    job = pickle.dumps((arguments, dict(os.environ), os.getcwd()))
    socket.send_fds(connection, [struct.pack("!I", len(job))], [0, 1, 2])
    connection.sendall(job)
    (pid,) = struct.unpack("!i", _receive(connection, 4))
    pathlib.Path(folder, str(os.getpid())).write_text(str(pid))
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    (status,) = struct.unpack("!i", _receive(connection, 4))
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def pid_of(process):
    """Returns the pid of the program that a Popen of `PYTHON` runs."""
    path = pathlib.Path(PYTHON).parent / str(process.pid)
    return int(path.read_text()) if path.exists() else process.pid


def _connect(owner, folder):
    """Connects to the server; starts it if it is not running."""
    address = str(folder / "socket")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(address):
            log = open(folder / "log", "w")
            server = subprocess.Popen(
                [sys.executable, __file__, owner, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
            end = time.monotonic() + START_SECONDS
            while not os.path.exists(address):
                if server.poll() is not None or time.monotonic() > end:
                    sys.exit(f"the server did not start; see {folder / 'log'}")
                time.sleep(0.05)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection


def _receive(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError("the other side has gone")
        data += part
    return data


class Server:
    """Forks a process for each connection. `job` returns only in the forks."""

    def __init__(self, owner, folder):
        self._connections = set()
        self._selector = selectors.DefaultSelector()
        owner = os.pidfd_open(owner)
        self._selector.register(owner, selectors.EVENT_READ, self._end)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "starting"))
        listener.listen(64)
        self._listener = listener
        os.rename(folder / "starting", folder / "socket")
        self._selector.register(listener, selectors.EVENT_READ, self._start)
        self._pids = set()
        self._job = None

    def job(self):
        """Runs the server loop; returns (arguments, environment, folder) in each fork."""
        while self._job is None:
            for key, _ in self._selector.select():
                key.data(key.fileobj)
                if self._job is not None:
                    break
        return self._job

    def _end(self, _):
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def _start(self, listener):
        connection, _ = listener.accept()
        try:
            size, streams, _, _ = socket.recv_fds(connection, 4, 3)
            job = pickle.loads(_receive(connection, struct.unpack("!I", size)[0]))
        except (EOFError, OSError, struct.error):  # the launcher was killed
            connection.close()
            return
        pid = os.fork()
        if not pid:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for held in (*self._connections, connection, listener, self._selector):
                held.close()
            self._job = job
            return
        for stream in streams:
            os.close(stream)
        self._pids.add(pid)
        self._connections.add(connection)
        with contextlib.suppress(OSError):  # the launcher was killed; `abandoned` follows
            connection.sendall(struct.pack("!i", pid))
        handle = os.pidfd_open(pid)

        def ended(_):
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self._pids.discard(pid)
            self._connections.discard(connection)
            self._selector.unregister(handle)
            os.close(handle)
            if connection.fileno() >= 0:
                self._selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(struct.pack("!i", status))
                connection.close()

        def abandoned(_):  # the launcher was killed, so kill the program
            if connection.fileno() < 0:  # the program ended at the same moment
                return
            self._selector.unregister(connection)
            connection.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        self._selector.register(handle, selectors.EVENT_READ, ended)
        self._selector.register(connection, selectors.EVENT_READ, abandoned)


def serve(owner, folder):
    """Imports the packages, serves, and runs the command in each fork as Python would."""
    import gc
    import runpy
    import warnings

    import short_runs

    gc.disable()  # the many objects of imports stay, so collections would only take time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python 3.12 warn about forks
        import tensorflow_text  # noqa: F401
        from tensorflow.python.eager import context

        import kbert.inference.predictor
        import kbert.serving.saved_model
        import kbert.train  # noqa: F401

        if context.context()._initialized:
            sys.exit("an import has started TensorFlow, which a fork cannot use")
        gc.freeze()  # keeps memory pages shared between forks
        (option, *arguments), environment, place = Server(owner, folder).job()
    gc.enable()
    os.environ.clear()
    os.environ.update(environment)
    if short_runs.VARIABLE in environment:
        short_runs.shorten()
    os.chdir(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if option == "-m":
        sys.path[0], sys.argv = place, arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.path[0], sys.argv = "", ["-c", *arguments[1:]]
        import __main__

        __main__.__dict__.pop("__file__", None)
        exec(compile(arguments[0], "<string>", "exec"), __main__.__dict__)
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(option)), [option, *arguments]
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
    else:
        launch(*sys.argv[1:])
