"""Runs Python functions inside tf.data, counting the calls so that a process can exit cleanly."""

import atexit
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

_calls = {"begun": 0, "ended": 0}
_calls_lock = threading.Lock()


@atexit.register
def _wait_for_pipelines():
    """Waits until the pipelines have filled their buffers and are idle, before Python shuts down.

    Otherwise, a tf.data thread that requests the GIL during shutdown would be blocked, and the
    destructor of the iterator would wait for that thread forever. Nothing consumes batches any
    more, so the calls stop when the buffers are full.
    """
    seen = None
    while _calls["begun"] != _calls["ended"] or seen != _calls["begun"]:
        seen = _calls["begun"]
        time.sleep(0.05)


def numpy_map(
    function: Callable[..., Mapping[str, np.ndarray]],
    inputs: Sequence[tf.Tensor],
    specs: Mapping[str, tuple[Sequence[int | None], str | tf.DType]],
) -> dict[str, tf.Tensor]:
    """Calls a Python function on tensors, for use in `Dataset.map`.

    Args:
        function: maps the values of `inputs`, as NumPy arrays, to a dict of arrays.
        inputs: tensors.
        specs: dict of name -> (shape, dtype) of each array; None for unknown sizes.

    Returns:
        dict of name -> tensor, with the names of `specs`.
    """

    def call_function(*arrays):
        with _calls_lock:
            _calls["begun"] += 1
        try:
            result = function(*arrays)
        finally:
            with _calls_lock:
                _calls["ended"] += 1
        return [result[name] for name in specs]

    dtypes = [dtype for _, dtype in specs.values()]
    values = tf.numpy_function(call_function, inputs, dtypes, stateful=False)
    for value, (shape, _) in zip(values, specs.values(), strict=True):
        value.set_shape(shape)
    return dict(zip(specs, values, strict=True))
