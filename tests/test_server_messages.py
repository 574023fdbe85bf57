"""Requests as the server parses them: the same fields, without an object for each example."""

import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
    regression_pb2,
)

from kbert.server import messages
from kbert.server.errors import RequestError
from kbert.server.tensors import examples_of_input, from_protos


def example(**features):
    found = tf.train.Example()
    for name, values in features.items():
        found.features.feature[name].bytes_list.value.extend(values)
    return found


def parse(method, request):
    return messages.parse_request(method, request.SerializeToString(), 1000)


def test_the_tensors_of_predict_are_a_list():
    request = predict_pb2.PredictRequest(output_filter=["score", "label"])
    request.model_spec.name, request.model_spec.version.value = "bert", 7
    for name, values in (("text", [b"a", b"b"]), ("text_pair", [b"c", b"d"])):
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    found = parse("Predict", request)
    assert (found.model_spec.name, found.model_spec.version.value) == ("bert", 7)
    assert list(found.output_filter) == ["score", "label"]
    protos = {entry.key: entry.value for entry in found.inputs}
    specs = {name: tf.TensorSpec([None], tf.string) for name in ("text", "text_pair")}
    arrays = from_protos(protos, specs)
    assert arrays["text"].tolist() == [b"a", b"b"] and arrays["text_pair"].tolist() == [b"c", b"d"]


def test_examples_stay_serialized():
    request = classification_pb2.ClassificationRequest()
    rows = [example(text=[b"a"]), example(text=[b"b"], other=[b"c", b"d"])]
    request.input.example_list.examples.extend(rows)
    request.model_spec.version_label = "stable"
    found = parse("Classify", request)
    assert found.model_spec.WhichOneof("version_choice") == "version_label"
    examples = found.input.example_list.examples
    assert [tf.train.Example.FromString(data) for data in examples] == rows
    many = inference_pb2.MultiInferenceRequest(input=request.input)
    many.tasks.add(method_name="x").model_spec.name = "bert"
    found = parse("MultiInference", many)
    assert list(found.input.example_list.examples) == list(examples)
    assert [(task.method_name, task.model_spec.name) for task in found.tasks] == [("x", "bert")]


def test_an_example_overrides_features_of_the_context():
    value = input_pb2.Input()
    value.example_list_with_context.context.CopyFrom(example(a=[b"1"], b=[b"2"]))
    value.example_list_with_context.examples.append(example(b=[b"3"], c=[b"4"]))
    (found,) = examples_of_input(messages.with_serialized_examples(value), 9)
    merged = example(a=[b"1"], b=[b"3"], c=[b"4"])
    assert tf.train.Example.FromString(found) == merged
    parsed = tf.io.parse_example([found], {name: tf.io.VarLenFeature(tf.string) for name in "abc"})
    assert [parsed[name].values.numpy().tolist() for name in "abc"] == [[b"1"], [b"3"], [b"4"]]


def test_other_requests_and_bytes_that_are_none():
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "bert"
    assert parse("GetModelStatus", request).model_spec.name == "bert"
    with pytest.raises(RequestError, match="not a valid message of this method") as error:
        messages.parse_request("Predict", b"\xff\xff garbage", 9)
    assert error.value.code == "INVALID_ARGUMENT"


def predict(**fields):
    request = predict_pb2.PredictRequest(**fields)
    request.inputs["text"].dtype = 7
    return request


def many(kind, count):
    """(method, request) with this many values of a kind; they are small, and `parse` is slow."""
    if kind == "examples":
        listed = input_pb2.ExampleList(examples=[tf.train.Example()] * count)
        value = input_pb2.Input(example_list=listed)
        return "Regress", regression_pb2.RegressionRequest(input=value)
    if kind == "context":
        listed = input_pb2.ExampleListWithContext(examples=[tf.train.Example()] * count)
        value = input_pb2.Input(example_list_with_context=listed)
        return "Classify", classification_pb2.ClassificationRequest(input=value)
    if kind == "tasks":
        tasks = [inference_pb2.InferenceTask()] * count
        return "MultiInference", inference_pb2.MultiInferenceRequest(tasks=tasks)
    if kind == "output_filter":
        return "Predict", predict(output_filter=[""] * count)
    request = predict()
    proto = request.inputs["text"]
    if kind == "strings":
        proto.string_val.extend([b""] * count)
    elif kind == "dims":
        proto.tensor_shape.dim.extend([tensor_shape_pb2.TensorShapeProto.Dim()] * count)
    elif kind == "variants":
        proto.variant_val.extend([tensor_pb2.VariantTensorDataProto()] * count)
    else:
        for number in range(count):
            request.inputs[str(number)].SetInParent()
    return "Predict", request


@pytest.mark.parametrize(
    "kind",
    ["examples", "context", "tasks", "output_filter", "strings", "dims", "variants", "names"],
)
def test_too_many_values_are_rejected_before_they_are_parsed(kind, monkeypatch):
    method, request = many(kind, 300)
    data = request.SerializeToString()
    # The lists are in at most three messages, whose fields count, too.
    assert messages.parse_request(method, data, 300 + 3 * 300 * (kind == "names") + 9)
    monkeypatch.setitem(messages._REQUESTS, method, None)
    with pytest.raises(RequestError, match="more than 299 values, half of --max_que") as error:
        messages.parse_request(method, data, 299)
    assert error.value.code == "INVALID_ARGUMENT"


def test_few_values_are_never_too_many():
    """Bytes of texts and numbers do not count, nor do unknown fields of any wire type hide any."""
    request = predict()
    request.inputs["text"].string_val.extend([b"\n\x00B\x00" * 5000] * 3)
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([66] * 9999))
    unknown = b"\xf9\x07" + b"B" * 8 + b"\xfd\x07" + b"B" * 4 + b"\xf8\x07\xff\x7f"
    unknown += b"\xfb\x07\x08\x01\xfc\x07" + b"\xfa\x07\x02B\x00"
    data = request.SerializeToString() + unknown
    (found,) = [x.value for x in messages.parse_request("Predict", data, 30).inputs if x.key == "x"]
    assert tf.make_ndarray(found).tolist() == [66] * 9999


@pytest.mark.parametrize("data", [b"\xff", b"\x12\xff", b"\x12\x05\n", b"\x10", b"\x0f"])
def test_damaged_messages(data):
    for damaged in (data, data * 50_000):  # a number of many bytes would take time
        for method in ("Predict", "Classify", "GetModelStatus"):
            with pytest.raises(RequestError, match=r"not a valid message|more than 9 values"):
                messages.parse_request(method, damaged, 9)
