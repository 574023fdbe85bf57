"""TensorFlow code of `fused` (XLA, custom gradients) and of `inference_ops` (fusion on CPUs)."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def with_xla(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of tensors with XLA; its keyword arguments are compile-time constants.

    If the CPU is split into several logical devices, which XLA does not support, the function runs
    uncompiled.
    """

    @functools.cache
    def compiled(settings):
        part = functools.partial(function, **dict(settings))
        return tf.function(part, jit_compile=True, autograph=False)

    def run(*arguments, **settings):
        if len(tf.config.list_logical_devices("CPU")) > 1:
            return function(*arguments, **settings)
        tensors = tf.nest.map_structure(tf.convert_to_tensor, arguments)  # variables included
        return compiled(tuple(sorted(settings.items())))(*tensors)

    return run


def with_gradient(
    function: Callable[..., tuple[tf.Tensor, ...]],
    gradient: Callable[..., tuple[tf.Tensor | None, ...]],
) -> Callable[..., tf.Tensor]:
    """Combines a function of tensors with its gradient; both take the same keyword arguments.

    Args:
        function: returns a tuple of the result and any other values that the gradient needs.
        gradient: function of the tuple of tensors, the tuple that `function` returned, and the
            gradient of the result; returns the gradient of each tensor, or None if it has none.

    Returns:
        function of the same arguments that returns only the result.
    """

    def run(*tensors, **settings):
        @tf.custom_gradient
        def result(*tensors):
            outputs = function(*tensors, **settings)
            return outputs[0], lambda grad: gradient(tensors, outputs, grad, **settings)

        return result(*map(tf.convert_to_tensor, tensors))

    return run


def sum_rows(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums the rows of x, (..., D) -> (D,), to compute the gradient of a bias.

    Returns the dtype of `like`. Uses a matrix product, because XLA's sum over rows is ten times
    slower on the CPU. float16 is summed in float32, because a sum of scaled gradients may overflow.
    """
    x = tf.reshape(x, (-1, x.shape[-1]))
    if x.dtype == tf.float16:
        x = tf.cast(x, tf.float32)
    return tf.cast(tf.matmul(tf.ones((1, tf.shape(x)[0]), x.dtype), x)[0], like.dtype)


def constant_dense(
    dense: keras.layers.Dense, x: tf.Tensor, then: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Computes then(dense(x)) in a form that Grappler fuses if the weights are constants.

    The layer has no activation. `then` gets its output as (N, F), where N is the number of rows.
    """
    rows = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), dense.kernel)
    rows = then(tf.nn.bias_add(rows, tf.convert_to_tensor(dense.bias)))
    return tf.reshape(rows, tf.concat([tf.shape(x)[:-1], rows.shape[-1:]], 0))


def constant_norm(norm: keras.layers.LayerNormalization, x: tf.Tensor) -> tf.Tensor:
    """Computes norm(x) in a form that Grappler fuses if the weights are constants.

    The form is batch normalization with the rows of x as channels, which Grappler replaces by
    oneDNN's LayerNorm.
    """
    N = tf.size(x) // x.shape[-1]
    nothing = tf.constant([], tf.float32)
    normalized = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, tf.stack([1, N, x.shape[-1], 1])),
        scale=tf.fill([N], 1.0),
        offset=tf.fill([N], 0.0),
        mean=nothing,
        variance=nothing,
        epsilon=norm.epsilon,
        data_format="NCHW",
        is_training=True,
    )[0]
    gamma, beta = tf.cast(norm.gamma, x.dtype), tf.cast(norm.beta, x.dtype)
    return tf.reshape(normalized, tf.shape(x)) * gamma + beta


def constant_scores(query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Computes query @ key^T without a separate transpose, which Grappler would keep."""
    return tf.matmul(query, key, transpose_b=True)
