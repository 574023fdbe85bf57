"""Arrays of requests: what is read as what, and what is refused."""

import base64
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import input_pb2

from kbert.server import tensors
from kbert.server.errors import RequestError
from kbert.server.messages import with_serialized_examples


def bytes_of(*texts):
    return np.array([text.encode() for text in texts], object)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1, -2, 3], [4, 5, 6]], np.int32),
        np.array([2**40, -7], np.int64),
        np.array([[0.1], [-3e30]], np.float32),
        np.array([True, False]),
        np.array([[b"a", "ü".encode()], [b"", b"\xff\x00"]], object),
        np.zeros((0, 3), np.float32),
        np.arange(31, dtype=np.float32),  # 124, 128, 16,384 bytes: one, two and three of length
        np.arange(32, dtype=np.float32),
        np.arange(4096, dtype=np.float32),
        np.array([], object),
        np.array(7, np.int32),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_a_proto_and_back(array):
    proto = tensors.to_proto(array)
    assert not proto.tensor_content  # old clients read the values
    spec = tf.TensorSpec([None] * array.ndim, "string" if array.dtype == object else array.dtype)
    for sent in (
        proto,
        tf.make_tensor_proto(array),
        type(proto).FromString(proto.SerializeToString()),
    ):
        back = tensors.from_protos({"x": sent}, {"x": spec})["x"]
        assert back.dtype == array.dtype and back.shape == array.shape
        assert (back == array).all()


def proto_of(shape, **values):
    proto = tf.make_tensor_proto(np.zeros(0, np.float32))
    proto.ClearField("tensor_shape")
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    for name, value in values.items():
        getattr(proto, name).extend(value)
    return proto


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (proto_of([1 << 40], float_val=[1.0]), "more elements than were sent"),
        (proto_of([(1 << 20) + 2], float_val=[1.0]), "more elements than were sent"),
        (proto_of([1 << 20, 1 << 20], float_val=[1.0]), r"takes the shape \['any'\]"),
        (proto_of([-1], float_val=[1.0]), "must have a fully defined shape"),
        (proto_of([2], float_val=[1.0, 2.0, 3.0]), r"is not a tensor of the shape \[2\]"),
        (proto_of([1] * 5000, float_val=[1.0]), "takes the shape"),
        (tf.make_tensor_proto([1]), "takes float32; got int32"),
        (tensor_pb2.TensorProto(dtype=99), "takes float32; got type 99"),
        (tf.make_tensor_proto([b"a"]), "takes float32; got string"),
    ],
)
def test_protos_that_are_refused(proto, message):
    with pytest.raises(RequestError, match=message) as error:
        tensors.from_protos({"x": proto}, {"x": tf.TensorSpec([None], tf.float32)})
    assert error.value.code == "INVALID_ARGUMENT" and len(str(error.value)) <= 500


def test_content_of_another_size_is_refused():
    proto = tf.make_tensor_proto([1.0, 2.0])
    proto.tensor_content = b"123"
    with pytest.raises(RequestError, match="input x"):
        tensors.from_protos({"x": proto}, {"x": tf.TensorSpec([None], tf.float32)})


@pytest.mark.parametrize(
    ("value", "dtype", "rank", "wanted"),
    [
        (["a", "ü"], tf.string, 1, bytes_of("a", "ü")),
        ([{"b64": base64.b64encode(b"\xff").decode()}], tf.string, 1, np.array([b"\xff"], object)),
        ([["a", "b"], ["c", "d"]], tf.string, 2, bytes_of("a", "b", "c", "d").reshape(2, 2)),
        ([], tf.string, 1, np.array([], object)),
        ([], tf.string, 2, np.zeros((0, 0), object)),
        ([[1, 2, 3]], tf.int32, 2, np.array([[1, 2, 3]], np.int32)),
        ([1, 2.5], tf.float32, 1, np.array([1, 2.5], np.float32)),
        ([True], tf.bool, 1, np.array([True])),
        ("a", tf.string, 0, np.array(b"a", object)),
        ("\ud800", tf.string, 0, np.array(b"?", object)),
        ([*range(40_000)], tf.int32, 1, np.arange(40_000, dtype=np.int32)),
        ([], tf.int32, 1, np.array([], np.int32)),
    ],
)
def test_json(value, dtype, rank, wanted):
    found = tensors.from_json("x", value, dtype, rank)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape and (found == wanted).all()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (["a", ["b"]], tf.string, "lists mixed with values|takes strings"),
        ([["a"], "b"], tf.string, "lists mixed with values"),
        ([["a"], ["b", "c"]], tf.string, "different lengths"),
        ([1], tf.string, "takes strings; got 1"),
        ([None], tf.string, "takes strings; got None"),
        ([{"b64": "?"}], tf.string, "is not base64"),
        ([{"b64": 3}], tf.string, "takes strings"),
        (["1"], tf.int32, "takes int32; got '1'"),
        ([1.5], tf.int32, "takes int32; got 1.5"),
        ([True], tf.int32, "takes int32; got True"),
        ([2**31], tf.int32, "got 2147483648, which is out of range"),
        ([*range(40_000), -(2**31) - 1, 0], tf.int32, "got -2147483649, which is out of range"),
        ([*range(40_000), 1.5], tf.int32, "takes int32; got 1.5"),
        ([10**400], tf.float32, "out of its range"),
        ([10**400], tf.bfloat16, "out of its range"),
        ([[[[[[[[[[1]]]]]]]]]], tf.int32, "nested more than 8 levels deep"),
        ([1], tf.bool, "takes bool"),
    ],
)
def test_json_that_is_refused(value, dtype, message):
    with pytest.raises(RequestError, match=message):
        tensors.from_json("x", value, dtype, 1)


def test_refusals_are_one_short_line():
    assert str(RequestError("NOT_FOUND", "a\n\x00b")) == r"a \x00b"
    assert len(str(RequestError("NOT_FOUND", "\x00" * 9999))) <= 500


def test_answers_as_json():
    assert tensors.to_json("text", bytes_of("a", "ü").reshape(1, 2)) == [["a", "ü"]]
    assert tensors.to_json("text", np.array([b"\xff"], object)) == ["\ufffd"]
    assert tensors.to_json("text_bytes", np.array([b"\xff"], object)) == [{"b64": "/w=="}]
    assert tensors.to_json("x", np.array([[1, 2]], np.int32)) == [[1, 2]]
    assert tensors.to_json("x", np.zeros((0, 2), object)) == []
    numbers = np.array([[0.1, 2.1411031e-05], [-3.4e38, 16777216]], np.float32)
    text = json.dumps(tensors.to_json("x", numbers))
    assert text == "[[0.1, 2.1411031e-05], [-3.4e+38, 16777216.0]]"
    assert (np.array(json.loads(text), np.float32) == numbers).all()


def example(**features):
    found = tf.train.Example()
    for name, values in features.items():
        found.features.feature[name].bytes_list.value.extend(values)
    return found


def examples_of_input(asked, *limits, **more):
    return tensors.examples_of_input(with_serialized_examples(asked), *limits, **more)


def test_examples_of_an_input():
    asked = input_pb2.Input()
    with pytest.raises(RequestError, match="no examples"):
        examples_of_input(asked, 2)
    asked.example_list.examples.add().CopyFrom(example(text=[b"a"]))
    (found,) = examples_of_input(asked, 2)
    assert tf.train.Example.FromString(found) == example(text=[b"a"])
    asked = input_pb2.Input()
    asked.example_list_with_context.context.CopyFrom(example(text=[b"q"]))
    for word in (b"a", b"b"):
        row = asked.example_list_with_context.examples.add()
        row.CopyFrom(example(text_pair=[word]))
    found = [tf.train.Example.FromString(x) for x in examples_of_input(asked, 2)]
    assert found == [example(text=[b"q"], text_pair=[word]) for word in (b"a", b"b")]
    with pytest.raises(RequestError, match="2 examples in one request; at most 1 are allowed"):
        examples_of_input(asked, 1)
    asked.example_list_with_context.context.CopyFrom(example(text=[b"q" * 500]))
    with pytest.raises(RequestError, match=r"exceeds 1,000 bytes \(--max_request_bytes\)"):
        examples_of_input(asked, 2, most_bytes=1000)


def test_examples_of_json():
    found = tf.train.Example.FromString(
        tensors.example_of_json(
            {"text": "a", "n": [1, 2], "x": 0.5, "many": ["b", {"b64": "/w=="}]}
        )
    )
    feature = found.features.feature
    assert list(feature["text"].bytes_list.value) == [b"a"]
    assert list(feature["many"].bytes_list.value) == [b"b", b"\xff"]
    assert list(feature["n"].int64_list.value) == [1, 2]
    assert list(feature["x"].float_list.value) == [0.5]
    with pytest.raises(RequestError, match="the name of a feature is not Unicode"):
        tensors.example_of_json({"\ud800": "a"})
    for wrong in (["a"], {"x": [1, "a"]}, {"x": None}, {"x": True}, {"x": 10**400}):
        with pytest.raises(RequestError, match=r"an example must be|takes strings or numbers"):
            tensors.example_of_json(wrong)
