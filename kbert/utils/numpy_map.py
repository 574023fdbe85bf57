"""Python functions inside tf.data, counted so that a process can end while they are at work."""

import atexit
import threading
import time

import tensorflow as tf

_calls = {"begun": 0, "ended": 0}
_calls_lock = threading.Lock()


@atexit.register
def _wait_for_pipelines():
    """Lets the pipelines fill their buffers and fall still before Python shuts down.

    A tf.data thread that asks for the interpreter during the shutdown is stopped there, and the
    destructor of the iterator then waits for it for ever. Nobody takes batches any more, so the
    calls end by themselves.
    """
    seen = None
    while _calls["begun"] != _calls["ended"] or seen != _calls["begun"]:
        seen = _calls["begun"]
        time.sleep(0.05)


def numpy_map(function, inputs, specs):
    """dict of tensors that a Python function makes, for `Dataset.map`.

    Args:
        function: of numpy arrays, the values of `inputs`, a list of tensors, to a dict of arrays.
        specs: dict of name -> (shape, dtype), of what it returns; None where a size is not known.
    """

    def counted(*arrays):
        with _calls_lock:
            _calls["begun"] += 1
        try:
            result = function(*arrays)
        finally:
            with _calls_lock:
                _calls["ended"] += 1
        return [result[name] for name in specs]

    dtypes = [dtype for _, dtype in specs.values()]
    values = tf.numpy_function(counted, inputs, dtypes, stateful=False)
    for value, (shape, _) in zip(values, specs.values(), strict=True):
        value.set_shape(shape)
    return dict(zip(specs, values, strict=True))
