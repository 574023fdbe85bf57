"""Checks, in the graph of an export, of the sizes of the texts in a request."""

from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.tasks.outputs import TensorDict

if TYPE_CHECKING:
    from kbert.settings import TextLimits

# Bytes that a text may have for each token of `max_text_tokens`. This is checked before tokenizing,
# because tokenizing a very long text would take long.
BYTES_PER_TOKEN = 16


def with_limit_check(
    tensor: tf.Tensor, size: tf.Tensor, what: str, limits: "TextLimits | None", name: str
) -> tf.Tensor:
    """Returns `tensor`, and adds a check to the graph that `size` does not exceed a limit.

    Args:
        tensor: any tensor; the check runs before it is used.
        size: () int, the size to check.
        what: beginning of the error message, such as "a text has more tokens".
        limits: TextLimits; None for no check.
        name: name of the field of `limits` that holds the maximum.

    Raises:
        tf.errors.InvalidArgumentError: (when the graph runs) the size exceeds the limit.
    """
    if limits is None:
        return tensor
    most = getattr(limits, name)
    message = f"{what} than --{name}={most} of kbert.export allows; got"
    check = tf.raw_ops.Assert(condition=size <= most, data=[message, size])
    with tf.control_dependencies([check]):
        return tf.identity(tensor)


def with_text_limit_checks(texts: TensorDict, limits: "TextLimits | None") -> TensorDict:
    """Returns texts, and adds checks of their lengths in bytes and of the number of choices.

    Args:
        texts: dict of input name -> string tensor, (B,), or (B, C) for choices.
        limits: TextLimits; None for no checks.

    Raises:
        tf.errors.InvalidArgumentError: (when the graph runs) a limit is exceeded.
    """
    result = {name: tf.convert_to_tensor(text, tf.string) for name, text in texts.items()}
    if limits is None:
        return result
    for name, text in result.items():
        if text.shape.rank == 2:
            count = tf.shape(text)[1]
            text = with_limit_check(text, count, "a text has more choices", limits, "max_choices")
        size = longest(tf.strings.length(text))
        tokens = (size + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN
        what = f"{name} is longer, at {BYTES_PER_TOKEN} bytes per token,"
        result[name] = with_limit_check(text, tokens, what, limits, "max_text_tokens")
    return result


def with_token_limit_check(ids: tf.RaggedTensor, limits: "TextLimits | None") -> tf.RaggedTensor:
    """Returns the ids of texts, (B, None) ragged, and adds a check of the number of tokens."""
    size, what = longest(ids.row_lengths()), "a text has more tokens"
    return ids.with_flat_values(
        with_limit_check(ids.flat_values, size, what, limits, "max_text_tokens")
    )


def longest(lengths: tf.Tensor) -> tf.Tensor:
    """Returns the maximum of a tensor of lengths, () int32; 0 if the tensor is empty."""
    return tf.reduce_max(tf.concat([tf.reshape(tf.cast(lengths, tf.int32), [-1]), [0]], axis=0))
