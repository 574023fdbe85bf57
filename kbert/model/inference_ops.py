"""Ops for inference: Keras layers, or equivalent ops that TensorFlow fuses or tf2onnx converts."""

import contextlib
import contextvars
import math
from collections.abc import Callable

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    from kbert.model.fused_tf import constant_dense, constant_norm, constant_scores

_form = contextvars.ContextVar("form", default=None)  # None, "constant" or "plain"


@contextlib.contextmanager
def _computing_in(form):
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def constant_weights() -> contextlib.AbstractContextManager[None]:
    """Context manager: inference uses the ops that are fastest on CPUs if weights are constants.

    Requires TensorFlow. If the weights are variables, these ops are slower than the default ones.
    """
    return _computing_in("constant")


def onnx_compatible_ops() -> contextlib.AbstractContextManager[None]:
    """Context manager: inference uses only ops that tf2onnx converts, such as Erf, not Erfc."""
    return _computing_in("plain")


def dense(
    layer: keras.layers.Dense,
    x: keras.KerasTensor,
    then: Callable[[keras.KerasTensor], keras.KerasTensor] = lambda x: x,
) -> keras.KerasTensor:
    """Computes then(layer(x)); the layer must have no activation."""
    if layer.quantization_mode or _form.get() != "constant":
        return then(layer(x))
    return constant_dense(layer, x, then)


def norm(layer: keras.layers.LayerNormalization, x: keras.KerasTensor) -> keras.KerasTensor:
    """Computes layer(x)."""
    if _form.get() == "constant":
        return constant_norm(layer, x)
    return layer(x)


def gelu(x: keras.KerasTensor, approximate: bool) -> keras.KerasTensor:
    """Computes GELU with the tanh approximation or the exact error function."""
    if _form.get() and not approximate:
        # ops.gelu uses Erfc, which tf2onnx does not convert and Grappler does not fuse.
        return 0.5 * x * (1 + ops.erf(x * math.sqrt(0.5)))
    return ops.gelu(x, approximate)


def attention_scores(query: keras.KerasTensor, key: keras.KerasTensor) -> keras.KerasTensor:
    """Computes the products of (B, H, P, K) and (B, H, L, K), which are (B, H, P, L)."""
    if _form.get() == "constant":
        return constant_scores(query, key)
    return ops.matmul(query, ops.swapaxes(key, -1, -2))


def softmax(scores: keras.KerasTensor) -> keras.KerasTensor:
    """Computes the softmax over the last axis, in float32; returns the dtype of `scores`."""
    if _form.get() == "constant":
        return ops.softmax(scores, axis=-1)  # oneDNN computes it in float32
    return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), scores.dtype)
