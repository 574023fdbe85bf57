"""Checks, inside a graph, that texts do not exceed the limits of an export."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from kbert.settings import TextLimits

BYTES_PER_TOKEN = 16  # longest texts in bytes, checked before the work of tokenizing


def limited(
    tensor: tf.Tensor, size: tf.Tensor, what: str, limits: "TextLimits | None", name: str
) -> tf.Tensor:
    """Returns a tensor that is available only if a size does not exceed a limit.

    Args:
        size: () int. what: what the size counts. limits: None: no limit. name: a field of limits.

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


def limited_texts(
    texts: Mapping[str, tf.Tensor], limits: "TextLimits | None"
) -> dict[str, tf.Tensor]:
    """Returns the text inputs, (B,) or (B, C), if no text and no number of choices is too large.

    Raises:
        tf.errors.InvalidArgumentError: (when the graph runs) a limit is exceeded.
    """
    result = {name: tf.convert_to_tensor(text, tf.string) for name, text in texts.items()}
    if limits is None:
        return result
    for name, text in result.items():
        if text.shape.rank == 2:
            count = tf.shape(text)[1]
            text = limited(text, count, "a text has more choices", limits, "max_choices")
        size = longest(tf.strings.length(text))
        tokens = (size + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN
        what = f"{name} is longer, at {BYTES_PER_TOKEN} bytes per token,"
        result[name] = limited(text, tokens, what, limits, "max_text_tokens")
    return result


def limited_ids(ids: tf.RaggedTensor, limits: "TextLimits | None") -> tf.RaggedTensor:
    """Returns the ids of texts, (B, None) ragged, if no text has too many tokens."""
    size, what = longest(ids.row_lengths()), "a text has more tokens"
    return ids.with_flat_values(limited(ids.flat_values, size, what, limits, "max_text_tokens"))


def longest(lengths: tf.Tensor) -> tf.Tensor:
    """Returns the maximum of lengths of any shape, () int32; 0 if there are none."""
    return tf.reduce_max(tf.concat([tf.reshape(tf.cast(lengths, tf.int32), [-1]), [0]], axis=0))
