"""Requests that cannot be answered, and clients that leave."""

import base64
import json
import socket

import grpc
import pytest
from server_process import arrays, example, predict_request, refused, wait_for, waiting
from tensorflow_serving.apis import (
    inference_pb2,
    prediction_service_pb2_grpc,
)

BAD = [
    ("/v1/models/none:predict", {"inputs": ["a"]}, 404, "there is no model 'none'"),
    ("/v1/models/tags/versions/3:predict", {"inputs": ["a"]}, 404, "has no version 3"),
    ("/v1/models/tags/labels/x:predict", {"inputs": ["a"]}, 400, "no label 'x'"),
    ("/v1/models/%E2%82%AC:predict", {"inputs": ["a"]}, 404, "no model '€'"),
    (
        "/v1/models/tags:predict",
        b'{"inputs": ["a"], "signature_name": "\\ud800"}',
        400,
        "must be a string of Unicode characters",
    ),
    ("/v1/models/tags:explain", {"inputs": ["a"]}, 400, "is not served"),
    ("/v1/models", None, 400, "is not served"),
    ("/", None, 404, "is not served"),
    ("/v2/models/tags", None, 404, "is not served"),
    ("/v1/models/tags:predict", b"{", 400, "the body is not JSON"),
    ("/v1/models/tags:predict", b"\xff", 400, "the body is not JSON"),
    ("/v1/models/tags:predict", b"[" * 150_000, 400, "the body is not JSON"),
    ("/v1/models/tags:predict", b"", 400, "the body is not JSON"),
    ("/v1/models/tags:predict", [1], 400, "not a JSON object"),
    ("/v1/models/tags:predict", {}, 400, "either 'instances' or 'inputs'"),
    ("/v1/models/tags:predict", {"inputs": ["a"], "instances": ["a"]}, 400, "either"),
    ("/v1/models/tags:predict", {"instances": []}, 400, "at least one row"),
    ("/v1/models/tags:predict", {"instances": "a"}, 400, "at least one row"),
    ("/v1/models/tags:predict", {"instances": [{"text": "a"}, {"b": "a"}]}, 400, "the same inputs"),
    (
        "/v1/models/tags:predict",
        {"inputs": {"texts": ["a"]}},
        400,
        "no input 'texts'; it takes text",
    ),
    ("/v1/models/tags:predict", {"inputs": {}}, 400, "takes text; got nothing"),
    (
        "/v1/models/pair:predict",
        {"inputs": ["a"]},
        400,
        "takes several inputs; give each by name: text, text_pair",
    ),
    (
        "/v1/models/pair:predict",
        {"inputs": {"text": ["a"]}},
        400,
        "takes text, text_pair; got text",
    ),
    ("/v1/models/tags:predict", {"inputs": [1]}, 400, "takes strings; got 1"),
    ("/v1/models/tags:predict", {"inputs": [["a"]]}, 400, "takes the shape ['any']; got [1, 1]"),
    ("/v1/models/tags:predict", {"inputs": "a"}, 400, "takes the shape ['any']; got []"),
    ("/v1/models/tags:predict", {"inputs": ["a"], "signature_name": "x"}, 400, "no signature 'x'"),
    ("/v1/models/tags:predict", {"inputs": ["a"], "signature_name": 3}, 400, "must be a string"),
    (
        "/v1/models/tags:classify",
        {"examples": [{"text": "a"}]},
        400,
        "classify needs one that takes",
    ),
    ("/v1/models/pair:classify", {"signature_name": "classify"}, 400, "at least one example"),
    (
        "/v1/models/pair:classify",
        {"signature_name": "classify", "examples": [{"text": "a"}]},
        400,
        "text_pair",
    ),
    (
        "/v1/models/pair:predict",
        {"inputs": {"text": ["a", "b"], "text_pair": ["c"]}},
        400,
        "must have the same number of rows",
    ),
    (
        "/v1/models/choose:predict",
        {"inputs": {"text": ["a", "b"], "choices": [["c", "d"], ["e"]]}},
        400,
        "lists of different lengths",
    ),
]


@pytest.mark.parametrize(("path", "body", "code", "message"), BAD)
def test_bad_requests_by_rest(server, path, body, code, message):
    found = server.get(path, body)
    assert found[0] == code and message in found[1]["error"], found
    assert "\n" not in found[1]["error"] and len(found[1]["error"]) < 500


def test_methods_and_sizes_by_rest(server):
    assert server.get("/v1/models/tags:predict")[0] == 400
    for path in ("/", "/demo/models"):  # without --demo
        code, found = server.get(path)
        assert code == 404 and f"GET {path} is not served" in found["error"]
    assert server.get("/demo/attention", {"model": "tags", "text": "cat"})[0] == 404
    assert server.get("/v1/models/tags", b"", "DELETE")[0] == 400
    gzipped = {"Content-Encoding": "gzip"}
    code, found = server.get("/v1/models/tags:predict", b"no gzip", headers=gzipped)
    assert code == 400
    code, found = server.get("/v1/models/tags:predict", {"inputs": ["a" * 3_000_000]})
    assert code == 413 and "larger than 2,000,000 bytes" in found["error"]


def test_bad_requests_by_grpc(server):
    def bad(code, message, model, inputs, signature=""):
        request = predict_request(model, inputs, signature)
        refused(code, message, server.ask, "Predict", request)

    bad("NOT_FOUND", "there is no model 'x'", "x", {"text": ["a"]})
    bad("INVALID_ARGUMENT", "the request names no model; available:", "", {"text": ["a"]})
    bad("FAILED_PRECONDITION", "no signature 'x'", "tags", {"text": ["a"]}, "x")
    bad("INVALID_ARGUMENT", "takes string; got int32", "tags", {"text": [1]})
    bad("INVALID_ARGUMENT", "takes the shape ['any']; got []", "tags", {"text": "a"})
    bad("INVALID_ARGUMENT", "takes text; got texts", "tags", {"texts": ["a"]})
    bad("INVALID_ARGUMENT", "Could not parse", "tags", {"inputs": ["?"]}, "from_examples")
    bad("RESOURCE_EXHAUSTED", "larger than max", "tags", {"text": ["a" * 3_000_000]})
    request = predict_request("tags", {"text": ["a"]})
    request.inputs["text"].tensor_shape.dim[0].size = 1 << 40
    refused("INVALID_ARGUMENT", "more elements than were sent", server.ask, "Predict", request)
    bad("NOT_FOUND", "there is no model", "x" * 20_000, {"text": ["a"]})
    request = inference_pb2.MultiInferenceRequest()
    refused("INVALID_ARGUMENT", "no examples", server.ask, "MultiInference", request)
    request.input.example_list.examples.append(example(text="a"))
    refused("INVALID_ARGUMENT", "no tasks", server.ask, "MultiInference", request)
    request.tasks.add(method_name="other").model_spec.name = "tags"
    refused("UNIMPLEMENTED", "method_name must be", server.ask, "MultiInference", request)
    request.tasks.add(method_name="other").model_spec.name = "tags"
    refused("INVALID_ARGUMENT", "use a different signature", server.ask, "MultiInference", request)
    request.tasks[1].model_spec.name = "pair"
    refused("INVALID_ARGUMENT", "use the same model", server.ask, "MultiInference", request)
    request = predict_request("tags", {"text": ["a"]})
    request.output_filter.extend(["count"] * 99)
    message = "99 outputs are requested; signature serving_default has"
    refused("INVALID_ARGUMENT", message, server.ask, "Predict", request)
    features = {"input_ids": [[9_000_000]], "attention_mask": [[1]], "token_type_ids": [[0]]}
    bad("INVALID_ARGUMENT", "input_ids must be 0 to 25", "classify", features, "from_ids")
    choices = {"text": ["a"], "choices": [["b"] * 129]}
    bad("INVALID_ARGUMENT", "more choices than --max_choices=128 of kbert", "choose", choices)
    unknown = server.channel.unary_unary("/tensorflow.serving.PredictionService/Nothing")
    refused("UNIMPLEMENTED", "", unknown, b"")
    known = server.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    refused(
        "INVALID_ARGUMENT", "not a valid message of this method", known, b"\xff\xff\xff garbage"
    )
    classify = server.channel.unary_unary("/tensorflow.serving.PredictionService/Classify")
    spec, no_example = b"\n\x10\n\x04pair\x1a\x08classify", b"\x12\x05\n\x03\n\x01?"
    refused("INVALID_ARGUMENT", "Could not parse", classify, spec + no_example)
    assert server.get("/healthz")[0] == 200


def test_what_clients_give_up_is_forgotten(server):
    """By a deadline of gRPC, and by REST clients that have gone."""
    texts = ["the cat sat on a mat " * 2000] * 40  # many times what is given up after
    stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
    call = stub.Predict.future(predict_request("tags", {"text": texts}), timeout=1)
    wait_for(lambda: waiting(server) > 0 or call.done())
    assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: waiting(server) == 0)
    body = json.dumps({"inputs": texts}).encode()
    head = "POST /v1/models/tags:predict HTTP/1.1\r\nHost: localhost\r\n"
    with socket.create_connection(("127.0.0.1", server.rest)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: waiting(server) > 0)
    wait_for(lambda: waiting(server) == 0)
    given_up = 'method="rest_predict",model="tags",status="CANCELLED"'
    assert given_up in server.get("/monitoring/prometheus/metrics")[1]
    server.ask("Predict", predict_request("tags", {"text": ["a"]}))


def test_half_open_connections_and_half_sent_requests(server):
    """They take nothing from others."""
    head = b"POST /v1/models/tags:predict HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Length: 100000\r\n\r\n{"
    kept = []
    for i in range(60):
        for port in (server.rest, server.grpc):
            kept.append(socket.create_connection(("127.0.0.1", port)))
        kept[-2].send(head if i % 2 else b"POST /v1/mod")
        kept[-1].send(b"PRI * HTTP/2.0\r\n" if i % 2 else b"\x00\xff" * 50)
    assert server.get("/v1/models/tags:predict", {"inputs": ["a"]})[0] == 200
    server.ask("Predict", predict_request("tags", {"text": ["a"]}))
    for connection in kept:
        connection.close()
    assert server.get("/v1/models/tags:predict", {"inputs": ["a"]})[0] == 200


def test_bytes_that_are_not_utf8_are_answered(server):
    for text in (b"the \xff cat", b"\x80", b"\xf0\x9f"):
        answer = arrays(server.ask("Predict", predict_request("tags", {"text": [text]})))
        found = answer["text"][0, : answer["count"][0]].tolist()
        assert all(part and part in text for part in found)
        assert found or text != b"the \xff cat"
        body = {"inputs": {"text": [{"b64": base64.b64encode(text).decode()}]}}
        assert server.get("/v1/models/tags:predict", body)[0] == 200
