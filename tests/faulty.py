"""TensorFlow's file systems with faults: for tests of what is done about them."""

import collections
import time

import tensorflow as tf


class FaultyFiles:
    """Stands for `tf.io.gfile`; calls go through unless they are told to fail.

    Attributes:
        calls: list of (name of the function, its arguments).
        faults: dict of name -> list of what its next calls do: an exception is raised, an int lets
            so many bytes through (reading or copying them), None is no fault.
        always: dict of the same for all calls after those.
        delay_s: how long each call takes.
    """

    def __init__(self):
        self.calls, self.delay_s = [], 0
        self.faults, self.always = collections.defaultdict(list), {}

    def count(self, name):
        """How often a function was called."""
        return sum(called == name for called, _ in self.calls)

    def fault(self, name, *args):
        """Notes a call; raises its fault, or returns it."""
        self.calls.append((name, args))
        time.sleep(self.delay_s)
        fault = self.faults[name].pop(0) if self.faults[name] else self.always.get(name)
        if isinstance(fault, Exception):
            raise fault
        return fault

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.fault(name, *args)
            return getattr(tf.io.gfile, name)(*args, **kwargs)

        return call

    def copy(self, source, target, overwrite):
        """As the real one, but what arrives may be too short."""
        length = self.fault("copy", source, target)
        if overwrite and tf.io.gfile.exists(target):
            tf.io.gfile.remove(target)  # ram:// would append, as no other file system does
        tf.io.gfile.copy(source, target, overwrite=overwrite)
        if length is not None:
            with tf.io.gfile.GFile(source, "rb") as file:
                data = file.read(length)
            tf.io.gfile.remove(target)
            with tf.io.gfile.GFile(target, "wb") as file:
                file.write(data)

    def GFile(self, path, mode):
        """A file whose reads may fail, or bring little or nothing."""
        self.fault("GFile", path)
        return _FaultyFile(tf.io.gfile.GFile(path, mode), self)


class _FaultyFile:
    """Once a read failed or ended too soon, no read of it brings anything."""

    def __init__(self, file, files):
        self._file, self._files, self._over = file, files, False

    def seek(self, offset):
        self._file.seek(offset)

    def read(self, count):
        try:
            length = self._files.fault("read", count)
        except Exception:
            self._over = True
            raise
        self._over |= length == 0
        return b"" if self._over else self._file.read(count if length is None else length)


def unavailable(message="the service is away"):
    """An error that may pass."""
    return tf.errors.UnavailableError(None, None, message)
