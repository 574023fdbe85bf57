"""How layers are computed outside training: as they are, or in forms that others fuse."""

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
    """Makes models compute, outside training, in the forms that TensorFlow's CPU is fastest with.

    That is so where the weights are constants of a graph; with variables these are slower.
    """
    return _computing_in("constant")


def plain_ops():
    """Makes models compute, outside training, in the forms that ONNX Runtime has fused ops for.

    Matrix products without reshaping; LayerNorm and GELU in the ops of their definitions.
    """
    return _computing_in("plain")


def dense(layer, x, then=lambda x: x):
    """then(layer(x)) of a keras.layers.Dense."""
    if layer.quantization_mode or not _form.get():
        return then(layer(x))
    if _form.get() == "constant":
        return constant_dense(layer, x, then)
    return then(ops.matmul(x, layer.kernel) + layer.bias)


def norm(layer, x):
    """layer(x) of a keras.layers.LayerNormalization."""
    if _form.get() == "constant":
        return constant_norm(layer, x)
    if _form.get() == "plain":
        centered = x - ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.power(centered, 2.0), axis=-1, keepdims=True)
        return centered / ops.sqrt(variance + layer.epsilon) * layer.gamma + layer.beta
    return layer(x)


def gelu(x, approximate):
    """GELU: by tanh, or else by the error function."""
    if _form.get() == "plain" and not approximate:
        return 0.5 * x * (1 + ops.erf(x / math.sqrt(2)))
    return ops.gelu(x, approximate)


def softmax(scores):
    """Softmax over the last axis, in float32."""
    if _form.get() == "constant":
        return ops.softmax(scores, axis=-1)  # oneDNN's: it computes in float32 by itself
    return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), scores.dtype)
