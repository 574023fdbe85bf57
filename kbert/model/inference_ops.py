"""Inference ops of the layers: the Keras layers, or forms that TensorFlow fuses or ONNX has."""

import contextlib
import contextvars
import math

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    from kbert.model.fused_tf import constant_dense, constant_norm

_form = contextvars.ContextVar("form", default=None)  # "constant", "plain"


@contextlib.contextmanager
def _computing_in(form):
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def constant_weights():
    """Makes inference use the ops that are fastest on TensorFlow's CPU with constant weights.

    With variables as weights these ops are slower.
    """
    return _computing_in("constant")


def plain_ops():
    """Makes inference use only ops that tf2onnx converts: the exact GELU with Erf, not Erfc."""
    return _computing_in("plain")


def dense(layer, x, then=lambda x: x):
    """then(layer(x)), where `layer` is a keras.layers.Dense."""
    if layer.quantization_mode or _form.get() != "constant":
        return then(layer(x))
    return constant_dense(layer, x, then)


def norm(layer, x):
    """layer(x), where `layer` is a keras.layers.LayerNormalization."""
    if _form.get() == "constant":
        return constant_norm(layer, x)
    return layer(x)


def gelu(x, approximate):
    """GELU, with the tanh approximation or the exact error function."""
    if _form.get() == "plain" and not approximate:
        return 0.5 * x * (1 + ops.erf(x / math.sqrt(2)))
    return ops.gelu(x, approximate)


def softmax(scores):
    """Softmax over the last axis, in float32."""
    if _form.get() == "constant":
        return ops.softmax(scores, axis=-1)  # oneDNN computes it in float32
    return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), scores.dtype)
