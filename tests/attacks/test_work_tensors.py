"""Tensors that are sent as fewer values than they have elements: small requests, large arrays."""

import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from kbert.server.errors import RequestError
from kbert.server.tensors import from_protos


def proto_of(dtype, shape, **values):
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    for name, sent in values.items():
        getattr(proto, name).extend(sent)
    return proto


def read(protos, most_bytes):
    specs = {
        name: tf.TensorSpec([None] * len(proto.tensor_shape.dim), proto.dtype)
        for name, proto in protos.items()
    }
    return from_protos(protos, specs, most_bytes)


@pytest.mark.parametrize(
    ("proto", "size"),
    [
        (proto_of(tf.string, [1024], string_val=[b"a" * 40_000]), 1023 * 40_008),
        (proto_of(tf.string, [600_000], string_val=[b""]), 599_999 * 8),
        (proto_of(tf.float32, [2000, 1000], float_val=[1.5]), 1_999_999 * 4),
        (proto_of(tf.int64, [1000, 1000], int64_val=[1, 2]), 999_998 * 8),
        (proto_of(tf.float16, [4000, 1000], half_val=[1]), 3_999_999 * 2),
        (proto_of(tf.int32, [2**21]), 2**21 * 4),  # no value: zeros
        (proto_of(tf.int32, [2**62, 2**62], int_val=[7]), (2**124 - 1) * 4),
    ],
)
def test_repeated_values_count_against_the_limit_of_a_request(proto, size):
    message = re.escape(f"takes {size:,} bytes, and at most 4,000,000 are allowed")
    with pytest.raises(RequestError, match=message) as error:
        read({"x": proto}, 4_000_000)
    assert error.value.code == "INVALID_ARGUMENT" and "--max_request_bytes" in str(error.value)


def test_the_tensors_of_a_request_count_together():
    protos = {name: proto_of(tf.int32, [1001], int_val=[3]) for name in "ab"}
    assert read(protos, 8000)["b"].tolist() == [3] * 1001
    with pytest.raises(RequestError, match=r"a, b: .* takes 8,000 bytes, and at most 7,999"):
        read(protos, 7999)


def test_more_values_than_a_tensor_has_are_rejected_before_they_are_read():
    proto = proto_of(tf.int32, [3], int_val=[7] * 10)
    with pytest.raises(RequestError, match=r"tensor of the shape \[3\]: got 10 values"):
        read({"x": proto}, 4_000_000)
    proto = proto_of(tf.complex64, [2], scomplex_val=[1, 2, 3, 4])
    assert read({"x": proto}, 0)["x"].tolist() == [1 + 2j, 3 + 4j]


def test_more_values_than_a_request_may_have_tokens():
    """Exports of kbert: each id is a token, and each text has at least two."""
    protos = {"x": proto_of(tf.string, [3, 2], string_val=[b"a"] * 6)}
    specs = {"x": tf.TensorSpec([None, None], tf.string)}
    assert from_protos(protos, specs, 0, 6)["x"].shape == (3, 2)
    message = "input x has 6 values; at most 5 are allowed, half of --max_queue_tokens"
    with pytest.raises(RequestError, match=message) as error:
        from_protos(protos, specs, 0, 5)
    assert error.value.code == "INVALID_ARGUMENT"


def test_values_that_are_sent_are_not_counted():
    array = np.arange(6000, dtype=np.int32).reshape(2, 3000)
    whole = tf.make_tensor_proto(array)
    assert whole.tensor_content and (read({"x": whole}, 0)["x"] == array).all()
    single = proto_of(tf.int32, array.shape, int_val=array.ravel().tolist())
    assert (read({"x": single}, 0)["x"] == array).all()
    texts = proto_of(tf.string, [2], string_val=[b"a" * 9000, b"b"])
    assert read({"x": texts}, 0)["x"].tolist() == [b"a" * 9000, b"b"]
