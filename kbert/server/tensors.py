"""Conversion of arrays to and from TensorProtos, JSON and tf.Examples."""

import base64
import binascii
import math
import reprlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import tensor_pb2

from kbert.fields import is_text
from kbert.server.errors import invalid

Arrays = Mapping[str, np.ndarray]
MAX_BYTES = 4 << 20  # maximum size of a request, by default
MAX_RANK = 254  # of a tensor in TensorFlow
_CHUNK = 1 << 14  # numbers that are converted at once; other threads can run in between
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 100, 100
_FIELDS = {  # dtype -> field of TensorProto
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


def from_protos(
    protos: "Mapping[str, tensor_pb2.TensorProto]",
    specs: Mapping[str, tf.TensorSpec],
    most_bytes: int = MAX_BYTES,
    most_values: int | None = None,
) -> dict[str, np.ndarray]:
    """Converts the TensorProtos of a request to arrays; strings become object arrays of bytes.

    Args:
        protos: dict of name -> TensorProto. specs: tf.TensorSpec of each name.
        most_bytes: maximum size of the values that a tensor repeats instead of sending them.
        most_values: maximum number of values of a tensor.
    """
    shapes = {name: _checked_shape(name, protos[name], spec) for name, spec in specs.items()}
    size = sum(_repeated_bytes(name, protos[name], sizes) for name, sizes in shapes.items())
    if size > most_bytes:
        raise invalid(
            f"{', '.join(specs)}: the shapes claim to have more elements than were sent; repeating "
            f"the last one takes {size:,} bytes, and at most {most_bytes:,} are allowed "
            f"(--max_request_bytes)."
        )
    for name, sizes in shapes.items():
        if most_values and math.prod(sizes) > most_values:
            raise invalid(
                f"input {name} has {math.prod(sizes):,} values; at most {most_values:,} are "
                f"allowed, half of --max_queue_tokens. Send fewer per request."
            )
    return {name: _array(name, protos[name]) for name in specs}


def _checked_shape(name, proto, spec):
    """Returns the shape of a TensorProto, a list of int, or raises RequestError."""
    sizes = [axis.size for axis in proto.tensor_shape.dim[:MAX_RANK]]
    if proto.dtype != spec.dtype.as_datatype_enum:
        try:
            got = tf.as_dtype(proto.dtype).name
        except TypeError:
            got = f"type {proto.dtype}"
        raise invalid(f"input {name} takes {spec.dtype.name}; got {got}.")
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f"input {name} must have a fully defined shape.")
    check_shape(name, sizes, spec)
    return sizes


def _repeated_bytes(name, proto, sizes):
    """Returns the size of the elements that repeat a tensor's last value; 0 if there are none."""
    if proto.tensor_content:
        return 0
    sent = sum(len(values) for field, values in proto.ListFields() if field.name.endswith("_val"))
    if sent > 2 * math.prod(sizes):  # a complex number is two values
        raise invalid(f"input {name} is not a tensor of the shape {sizes}: got {sent:,} values.")
    missing = max(math.prod(sizes) - sent, 0)
    if proto.dtype != tf.string.as_datatype_enum:
        return missing * tf.as_dtype(proto.dtype).size
    return missing * (8 + len(proto.string_val[-1] if sent else b""))


def _array(name, proto):
    try:
        return tf.make_ndarray(proto)
    except (ValueError, TypeError, KeyError) as error:
        sizes = [axis.size for axis in proto.tensor_shape.dim]
        raise invalid(f"input {name} is not a tensor of the shape {sizes}: {error}.") from None


def check_shape(name: str, sizes: Sequence[int], spec: tf.TensorSpec) -> None:
    """Raises RequestError if a shape, a list of int, does not fit a tf.TensorSpec."""
    if not spec.shape.is_compatible_with(sizes):
        expected = [size if size is not None else "any" for size in spec.shape]
        raise invalid(f"input {name} takes the shape {expected}; got {sizes}.")


def to_proto(array: np.ndarray) -> "tensor_pb2.TensorProto":
    """Converts an array to a TensorProto with separate values, which old clients require."""
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    if dtype not in _FIELDS:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if dtype == tf.float32 and array.size:  # in wire format: avoids a Python float per value
        size = 4 * array.size
        length = bytes((size >> 7 * i & 127) | 128 for i in range((size.bit_length() - 1) // 7))
        length += bytes([size >> 7 * len(length)])
        proto.MergeFromString(b"\x2a" + length + array.astype("<f4").tobytes())
    else:
        getattr(proto, _FIELDS[dtype]).extend(array.ravel().tolist())
    return proto


def from_json(name: str, value: object, dtype: tf.DType, rank: int | None) -> np.ndarray:
    """Converts nested lists to an array, with {"b64": ...} for bytes.

    Args:
        name: name of the input. value: any JSON value. rank: number of axes, or None for any.
    """
    shape, flat = [], [value]
    while flat and isinstance(flat[0], list):
        sizes = {len(row) if isinstance(row, list) else -1 for row in flat}
        if len(sizes) > 1:
            raise invalid(f"input {name}: lists of different lengths, or lists mixed with values.")
        shape.append(sizes.pop())
        flat = [item for row in flat for item in row]
        if len(shape) > 8:
            raise invalid(f"input {name}: lists nested more than 8 levels deep.")
    if not flat and rank is not None:
        shape += [0] * (rank - len(shape))  # after an empty list the remaining axes are unknown
    if dtype == tf.string:
        return np.array([_bytes(name, item) for item in flat], object).reshape(shape)
    cuts = range(0, max(len(flat), 1), _CHUNK)
    parts = [_numbers(name, flat[begin : begin + _CHUNK], dtype) for begin in cuts]
    return np.concatenate(parts).reshape(shape)


def _bytes(name, item):
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError:  # an unpaired surrogate
            return item.encode("utf-8", "replace")
    if isinstance(item, dict) and set(item) == {"b64"} and isinstance(item["b64"], str):
        try:
            return base64.b64decode(item["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"input {name}: the value of 'b64' is not base64.") from None
    raise invalid(f"input {name} takes strings; got {_said(item)}.")


def _numbers(name, flat, dtype):
    if dtype == tf.bool:
        kinds = {bool}
    elif dtype.is_integer:
        kinds = {int}
    else:
        kinds = {int, float}
    if not set(map(type, flat)) <= kinds:
        wrong = next(item for item in flat if type(item) not in kinds)
        raise invalid(f"input {name} takes {dtype.name}; got {_said(wrong)}.")
    if dtype.is_integer and flat:
        low, high = min(flat), max(flat)
        if not dtype.min <= low <= high <= dtype.max:
            wrong = low if low < dtype.min else high
            raise invalid(
                f"input {name} takes {dtype.name}; got {_said(wrong)}, which is out of range."
            )
    try:
        return np.array(flat, dtype.as_numpy_dtype)
    except (OverflowError, TypeError):  # TypeError for bfloat16
        raise invalid(f"input {name} takes {dtype.name}; a number is out of its range.") from None


def _said(item):
    text = _SHORT.repr(item)  # `repr` fails for deep nesting
    return text if len(text) <= 60 else f"{text[:60]}..."


def to_json(name: str, array: np.ndarray) -> object:
    """Converts an array to nested lists; bytes become text, or {"b64": ...} in *_bytes."""
    if array.dtype == np.float32:
        array = array.astype("U16").astype(float)  # the shortest digits that identify a float32
    if array.dtype != object:
        return array.tolist()
    if name.endswith("_bytes"):
        flat = [{"b64": base64.b64encode(item).decode()} for item in array.ravel()]
    else:
        flat = [item.decode("utf-8", "replace") for item in array.ravel()]
    return np.array(flat, object).reshape(array.shape).tolist()


def examples_of_input(request: Message, most: int, most_bytes: int = MAX_BYTES) -> np.ndarray:
    """Returns the serialized tf.Examples, (B,), in an Input of the Classify and Regress APIs.

    Args:
        request: Input with serialized examples; see `kbert.server.messages`.
        most: maximum number of examples. most_bytes: maximum size of the context's copies.
    """
    kind = request.WhichOneof("kind")
    examples = getattr(request, kind).examples if kind else []
    context = request.example_list_with_context.context  # empty for other kinds of input
    check_examples(len(examples), most, context, most_bytes)
    # Two messages, one after the other, are the message with the fields of both.
    return np.array([context + example for example in examples], object)


def check_examples(count: int, most: int, context: bytes, most_bytes: int = MAX_BYTES) -> None:
    """Raises RequestError for a request with no examples or with more than `most`.

    Args:
        count: number of examples. context: serialized features shared by all examples.
        most_bytes: maximum size of the context's copies, one for each example.
    """
    if not count:
        raise invalid("the request has no examples.")
    if count > most:
        raise invalid(f"{count:,} examples in one request; at most {most:,} are allowed.")
    if count * len(context) > most_bytes:
        raise invalid(
            f"the context, copied for each example, exceeds {most_bytes:,} bytes "
            f"(--max_request_bytes)."
        )


def example_of_json(features: object) -> bytes:
    """Converts a JSON object of features, values or lists of values, to a serialized tf.Example."""
    if not isinstance(features, dict):
        raise invalid(f"an example must be an object of features; got {_said(features)}.")
    example = tf.train.Example()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if not is_text(name):
            raise invalid("the name of a feature is not Unicode.")
        feature = example.features.feature[name]
        if all(isinstance(item, (str, dict)) for item in values):
            feature.bytes_list.value.extend(_bytes(name, item) for item in values)
        elif all(type(item) is int and -(2**63) <= item < 2**63 for item in values):
            feature.int64_list.value.extend(values)
        elif all(type(item) in (int, float) and abs(item) < 1e38 for item in values):
            feature.float_list.value.extend(values)
        else:
            raise invalid(f"feature {name} takes strings or numbers, not both; got {_said(value)}.")
    return example.SerializeToString()
