"""Requests as the server parses them: the same fields, without an object for each example."""

import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
)

from kbert.server import messages
from kbert.server.errors import LONG_BYTES, RequestError
from kbert.server.tensors import examples_of_input, from_protos


def example(**features):
    found = tf.train.Example()
    for name, values in features.items():
        found.features.feature[name].bytes_list.value.extend(values)
    return found


def parse(method, request):
    return messages.parse_request(method, request.SerializeToString())


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
        messages.parse_request("Predict", b"\xff\xff garbage")
    assert error.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(("size", "pauses"), [(LONG_BYTES // 2, 0), (LONG_BYTES + 1, 1)])
def test_a_thread_pauses_after_a_long_message(size, pauses, monkeypatch):
    """Also if it is not valid; the event loop parses short ones, and must not pause."""
    slept = []
    monkeypatch.setattr(messages.time, "sleep", slept.append)
    request = predict_pb2.PredictRequest(output_filter=[""] * ((size + 1) // 2))
    parse("Predict", request)
    assert len(slept) == pauses and all(seconds > 0 for seconds in slept)
    with pytest.raises(RequestError):
        messages.parse_request("Predict", b"\xff" * size)
    assert len(slept) == 2 * pauses
