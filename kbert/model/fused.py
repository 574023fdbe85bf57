"""Fused ops for training: each computes the element-wise ops between two matrix products.

Each op and its hand-written gradient use `keras.ops`. On TensorFlow, XLA compiles both into one or
two loops, which access memory less often, and oneDNN or cuBLAS compute the matrix products. The
backward pass recomputes dropout masks and the intermediate values of GELU and LayerNorm instead of
storing them. Other backends differentiate the forward op themselves. The ops compute in float32, so
that a gradient is rounded once instead of after each op of a bfloat16 chain. `add_bias` and
`cross_entropy` return float32, the other ops the dtype of their input.

For inference, the functions call the layers, or their equivalents in `kbert.model.inference_ops`,
and leave the fusion to the compiler of the whole graph.
"""

import math
from typing import TYPE_CHECKING

import keras
from keras import ops

from kbert.model import inference_ops

if TYPE_CHECKING:
    from kbert.model.attention import Dropout

if keras.backend.backend() == "tensorflow":
    from kbert.model.fused_tf import sum_rows, with_gradient, with_xla
else:

    def with_xla(function):
        return function

    def with_gradient(function, gradient):
        return lambda *tensors, **settings: function(*tensors, **settings)[0]


_INV_SQRT_2, _INV_SQRT_2_PI = 1 / math.sqrt(2), 1 / math.sqrt(2 * math.pi)
_SQRT_2_OVER_PI, _CUBIC = math.sqrt(2 / math.pi), 0.044715  # constants of GELU's tanh form
_LOWBIAS32 = (0x7FEB352D, 0x846CA68B - 2**32)  # Wellons 2018, "Prospecting for hash functions"
_GOLDEN = 0x9E3779B1 - 2**32


def _float(x):
    return ops.cast(x, "float32")


def _shifted_xor(x, bits):
    shifted = ops.bitwise_and(ops.right_shift(x, bits), 2 ** (32 - bits) - 1)
    return ops.bitwise_xor(x, shifted)


def _mix(x, key=0):
    """Hashes int32. For each key it is a bijection, and each bit of x affects all output bits."""
    x = ops.bitwise_xor(_shifted_xor(x, 16) * _LOWBIAS32[0], key)
    return _shifted_xor(_shifted_xor(x, 15) * _LOWBIAS32[1], 16)


def dropout_keep_mask(
    x: keras.KerasTensor, seed: keras.KerasTensor, rate: float
) -> keras.KerasTensor:
    """Returns the mask of the elements that dropout keeps, computed from seed, row and column.

    The mask is a hash: it can be recomputed instead of stored, all backends drop the same elements,
    and an element costs a dozen integer operations, several times fewer than in TensorFlow's random
    generator (Philox). A seed (k, -1 - n) means that x is slice n of a larger tensor, split along
    its first axis into slices of equal size. The result is then the slice's part of the larger
    tensor's mask for the seed (k, -1).

    Args:
        x: (R, ...), with fewer than 2^31 elements per row, and fewer than 2^31 rows in the larger
            tensor.
        seed: (2,) int32.
        rate: probability of dropping an element.

    Returns:
        bool, of the shape of x; True = keep.
    """
    first = _mix(seed[0], _mix(ops.maximum(seed[1], -1)))
    count = ops.shape(x)[0]
    row = ops.maximum(-1 - seed[1], 0) * count + ops.arange(count, dtype="int32")
    row = _mix(row, key=first)[:, None]
    numbers = ops.arange(ops.size(x) // count, dtype="int32") * _GOLDEN + row
    draws = _mix(numbers, key=_mix(row + 1))  # without the key, rows would be shifted copies
    return ops.reshape(draws >= round((rate - 0.5) * 2**32), ops.shape(x))


def _apply_dropout(x, seed, rate):
    return ops.where(dropout_keep_mask(x, seed, rate), x * (1 / (1 - rate)), 0.0) if rate else x


@with_xla
def _drop(x, seed, *, rate):
    return ops.cast(_apply_dropout(_float(x), seed, rate), x.dtype)


_dropout = with_gradient(
    lambda x, seed, rate: (_drop(x, seed, rate=rate),),
    lambda inputs, _, grad, rate: (_drop(grad, inputs[1], rate=rate), None),
)


def dropout(x: keras.KerasTensor, seed: keras.KerasTensor, rate: float) -> keras.KerasTensor:
    """Sets each element to 0 with probability `rate`, and scales the others by 1 / (1 - rate).

    Args:
        x: (R, ...); see `dropout_keep_mask`.
        seed: (2,) int32.
        rate: in [0, 1).
    """
    return _dropout(x, seed, rate=rate)


@with_xla
def _gelu(x, bias, *, approximate):
    return (ops.cast(ops.gelu(_float(x) + _float(bias), approximate), x.dtype),)


@with_xla
def _gelu_grad(x, bias, grad, *, approximate):
    h = _float(x) + _float(bias)
    if approximate:
        t = ops.tanh(_SQRT_2_OVER_PI * (h + _CUBIC * h * h * h))
        inner = _SQRT_2_OVER_PI * (1 + 3 * _CUBIC * h * h)
        factor = 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * inner
    else:
        factor = 0.5 * (1 + ops.erf(h * _INV_SQRT_2)) + h * _INV_SQRT_2_PI * ops.exp(-0.5 * h * h)
    return ops.cast(factor * _float(grad), x.dtype)


def _gelu_backward(inputs, _, grad, approximate):
    grad = _gelu_grad(*inputs, grad, approximate=approximate)
    return grad, sum_rows(grad, inputs[1])


_bias_gelu = with_gradient(_gelu, _gelu_backward)


def dense_gelu(
    dense: keras.layers.Dense, x: keras.KerasTensor, approximate: bool, training: bool | None
) -> keras.KerasTensor:
    """Computes gelu(dense(x)).

    Args:
        dense: a layer with a bias and without an activation.
        approximate: whether to use the tanh approximation of GELU.
        training: whether to use the fused op instead of the layer.
    """
    if training:
        return _bias_gelu(ops.matmul(x, dense.kernel), dense.bias, approximate=approximate)
    return inference_ops.dense(dense, x, lambda x: inference_ops.gelu(x, approximate))


def _normalize(x, bias, residual, seed, rate, epsilon):
    """Returns rows of mean 0 and variance 1, (..., D), and their scale factors, (..., 1)."""
    x = _apply_dropout(_float(x) + _float(bias), seed, rate) + _float(residual)
    centered = x - ops.mean(x, axis=-1, keepdims=True)
    scale = ops.rsqrt(ops.mean(ops.square(centered), axis=-1, keepdims=True) + epsilon)
    return centered * scale, scale


@with_xla
def _add_norm(x, bias, residual, gamma, beta, seed, *, rate, epsilon):
    normalized, _ = _normalize(x, bias, residual, seed, rate, epsilon)
    return (ops.cast(normalized * gamma + beta, x.dtype),)


@with_xla
def _add_norm_element_grads(x, bias, residual, gamma, beta, seed, grad, *, rate, epsilon):
    normalized, scale = _normalize(x, bias, residual, seed, rate, epsilon)
    grad = _float(grad)
    inner = grad * gamma
    mean = ops.mean(inner, axis=-1, keepdims=True)
    along = ops.mean(inner * normalized, axis=-1, keepdims=True)
    to_residual = (inner - mean - normalized * along) * scale
    to_x = _apply_dropout(to_residual, seed, rate)
    return [ops.cast(y, x.dtype) for y in (to_x, to_residual, grad * normalized)]


def _add_norm_backward(inputs, _, grad, rate, epsilon):
    grads = _add_norm_element_grads(*inputs, grad, rate=rate, epsilon=epsilon)
    to_x, to_residual, to_gamma = grads
    _, bias, _, gamma, beta, _ = inputs
    sums = sum_rows(to_x, bias), sum_rows(to_gamma, gamma), sum_rows(grad, beta)
    return to_x, sums[0], to_residual, sums[1], sums[2], None


_bias_dropout_add_norm = with_gradient(_add_norm, _add_norm_backward)


def dense_add_norm(
    dense: keras.layers.Dense,
    dropout: "Dropout",
    norm: keras.layers.LayerNormalization,
    x: keras.KerasTensor,
    residual: keras.KerasTensor,
    training: bool | None,
) -> keras.KerasTensor:
    """Computes norm(residual + dropout(dense(x))): (B, L, F), (B, L, D) -> (B, L, D).

    Args:
        dense: a layer with a bias and without an activation.
        training: whether to apply dropout, and to use the fused op instead of the layers.
    """
    if not training:
        return inference_ops.norm(norm, residual + inference_ops.dense(dense, x))
    tensors = (ops.matmul(x, dense.kernel), dense.bias, residual, norm.gamma, norm.beta)
    settings = {"rate": dropout.rate, "epsilon": norm.epsilon}
    return _bias_dropout_add_norm(*tensors, dropout.next_seed(), **settings)


def add_norm(
    norm: keras.layers.LayerNormalization,
    x: keras.KerasTensor,
    residual: keras.KerasTensor,
    training: bool | None,
) -> keras.KerasTensor:
    """Computes norm(residual + x); both tensors are (B, L, D)."""
    if not training:
        return inference_ops.norm(norm, residual + x)
    bias, seed = ops.zeros(x.shape[-1:]), ops.zeros((2,), "int32")
    tensors = (x, bias, residual, norm.gamma, norm.beta, seed)
    return _bias_dropout_add_norm(*tensors, rate=0.0, epsilon=norm.epsilon)


@with_xla
def _softmax(scores, bias, seed, *, scale, rate):
    weights = ops.softmax(_float(scores) * scale + _float(bias), axis=-1)
    return [ops.cast(y, scores.dtype) for y in (_apply_dropout(weights, seed, rate), weights)]


@with_xla
def _softmax_grad(dropped, weights, grad, *, scale):
    through = _float(dropped) * _float(grad)
    grad = through - _float(weights) * ops.sum(through, axis=-1, keepdims=True)
    return ops.cast(grad * scale, dropped.dtype)


_bias_softmax_dropout = with_gradient(
    _softmax,
    lambda _, outputs, grad, scale, rate: (_softmax_grad(*outputs, grad, scale=scale), None, None),
)


def attention_weights(
    scores: keras.KerasTensor,
    bias: keras.KerasTensor | None,
    scale: float,
    dropout: "Dropout",
    training: bool | None,
) -> keras.KerasTensor:
    """Computes dropout(softmax(scores * scale + bias)).

    Args:
        scores: (B, H, P, L).
        bias: (B, 1, 1, L) or (B, 1, P, L), or None. It has no gradient.
        training: whether to apply dropout, and to use the fused op.
    """
    if bias is None:
        bias = ops.zeros((1, 1, 1, 1), scores.dtype)
    if training:
        seed = dropout.next_seed()
        return _bias_softmax_dropout(scores, bias, seed, scale=scale, rate=dropout.rate)
    scores = scores * scale + bias
    return inference_ops.softmax(scores)


def _split_heads(x, heads):
    x = ops.reshape(x, (-1, ops.shape(x)[1], heads, x.shape[-1] // heads))
    return ops.transpose(x, (0, 2, 1, 3))


def merge_heads(x: keras.KerasTensor) -> keras.KerasTensor:
    """Concatenates the heads: (B, H, L, K) -> (B, L, H * K)."""
    _, H, L, K = ops.shape(x)
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, L, H * K))


@with_xla
def _add_and_split(x, bias, *, heads):
    return (_split_heads(ops.cast(_float(x) + _float(bias), x.dtype), heads),)


_compiled_merge = with_xla(merge_heads)


def _add_and_split_backward(inputs, _, grad, heads):
    grad = _compiled_merge(grad)
    return grad, sum_rows(grad, inputs[1])


_bias_split_heads = with_gradient(_add_and_split, _add_and_split_backward)


def dense_heads(
    dense: keras.layers.Dense, x: keras.KerasTensor, heads: int, training: bool | None
) -> keras.KerasTensor:
    """Computes dense(x), split into heads: (B, L, D) -> (B, H, L, K)."""
    if training:
        return _bias_split_heads(ops.matmul(x, dense.kernel), dense.bias, heads=heads)
    return _split_heads(inference_ops.dense(dense, x), heads)


@with_xla
def _add_bias(x, bias):
    return (_float(x) + _float(bias),)


_biased = with_gradient(
    _add_bias,
    lambda inputs, _, grad: (ops.cast(grad, inputs[0].dtype), sum_rows(grad, inputs[1])),
)


def add_bias(
    x: keras.KerasTensor, bias: keras.KerasTensor, training: bool | None
) -> keras.KerasTensor:
    """Computes x + bias in float32: (..., V), (V,) -> (..., V)."""
    return _biased(x, bias) if training else _float(x) + _float(bias)


@with_xla
def _losses(logits, labels):
    highest = ops.max(logits, axis=-1, keepdims=True)
    total = highest + ops.log(ops.sum(ops.exp(logits - highest), axis=-1, keepdims=True))
    labels = labels[..., None]
    known = ops.logical_and(labels >= 0, labels < logits.shape[-1])
    losses = total - ops.take_along_axis(logits, ops.where(known, labels, 0), axis=-1)
    return ops.where(known, losses, math.nan), total


@with_xla
def _losses_grad(logits, labels, total, grad):
    right = ops.arange(logits.shape[-1], dtype=labels.dtype) == labels[..., None]
    return (ops.exp(logits - total) - ops.cast(right, logits.dtype)) * grad


_cross_entropy = with_gradient(
    _losses, lambda inputs, outputs, grad: (_losses_grad(*inputs, outputs[1], grad), None)
)


def cross_entropy(logits: keras.KerasTensor, labels: keras.KerasTensor) -> keras.KerasTensor:
    """Computes the cross-entropy in nats: (..., C) float32, (...) int32 -> (...) float32.

    It is NaN for labels that are not in [0, C).
    """
    return ops.squeeze(_cross_entropy(logits, labels), -1)
