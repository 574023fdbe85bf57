"""Hostile requests: each gets the right status in TensorFlow Serving's form, and nothing else."""

import base64
import gzip
import json
import logging

import event_loop
import grpc
import numpy as np
import pytest
import tensorflow as tf
from live import http, running, send
from server_process import predict_request
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

JSON = "application/json"
PREDICT = "/v1/models/m:predict"
IDS = {"attention_mask": [[1]], "token_type_ids": [[0]]}


def ids(value, **others):
    return {"signature_name": "from_ids", "inputs": {"input_ids": value, **IDS, **others}}


def nested(depth, opening=b"[", closing=b"]"):
    return b'{"inputs": ' + opening * depth + b"1" + closing * depth + b"}"


def examples(value, **others):
    return {"signature_name": "classify", "examples": value, **others}


def base64_of(data):
    return {"b64": base64.b64encode(data).decode()}


BODIES = {  # of POST m:predict, with the status
    "nothing": (b"", 400),
    "half an object": (b'{"inputs": ["a"]', 400),
    "words": (b"nul", 400),
    "single quotes": (b"{'inputs': ['a']}", 400),
    "trailing comma": (b'{"inputs": ["a"],}', 400),
    "more after the end": (b'{"inputs": ["a"]} {}', 400),
    "null": (b"null", 400),
    "a list": (b"[]", 400),
    "a number": (b"1e999", 400),
    "not UTF-8": (b'{"inputs": ["\xff\xfe"]}', 400),
    "not UTF-8 in a key": (b'{"\xe4": 1}', 400),
    "nested 9": (nested(9), 400),
    "nested 968": (nested(968), 400),
    "nested 968 objects": (nested(968, b'{"a":', b"}"), 400),
    "nested 968 in a text": (b'{"inputs": [' + b'{"b64":' * 968 + b"1" + b"}" * 968 + b"]}", 400),
    "nested 100,000": (nested(100_000), 400),
    "300,000 lists": (b'{"inputs": [' + b"[]," * 300_000 + b"[]]}", 400),
    "5,000 digits": (b'{"inputs": [' + b"9" * 5000 + b"]}", 400),
    "4,000 digits": (b'{"inputs": [' + b"9" * 4000 + b"]}", 400),
    "NaN": (b'{"inputs": [NaN]}', 400),
    "a null text": ({"inputs": [None]}, 400),
    "mixed texts": ({"inputs": ["a", 1]}, 400),
    "a text in an object": ({"inputs": {"text": {"text": "a"}}}, 400),
    "not base64": ({"inputs": [{"b64": "?"}]}, 400),
    "base64 of a number": ({"inputs": [{"b64": 1}]}, 400),
    "both forms": ({"inputs": ["a"], "instances": ["a"]}, 400),
    "rows of different names": ({"instances": [{"text": "a"}, {"texts": "a"}]}, 400),
    "rows and values": ({"instances": [{"text": "a"}, "a"]}, 400),
    "a signature that is a list": ({"inputs": ["a"], "signature_name": ["x"]}, 400),
    "a signature of 100 KB": ({"inputs": ["a"], "signature_name": "x" * 100_000}, 400),
    "a signature that is no Unicode": (b'{"inputs": ["a"], "signature_name": "\\ud800"}', 400),
    "an input of 100 KB": ({"inputs": {"x" * 100_000: ["a"]}}, 400),
    "ids that are floats": (ids([[1.5]]), 400),
    "ids that are bools": (ids([[True]]), 400),
    "negative ids": (ids([[-1]]), 400),
    "ids above 32 bits": (ids([[1 << 31]]), 400),
    "ids of 1e400": (b'{"signature_name": "from_ids", "inputs": {"input_ids": [[1e400]]}}', 400),
    "ragged ids": (ids([[1], [1, 2]]), 400),
    "no ids": (ids([[]]), 400),
    "ids of other shapes": (ids([[1, 2]]), 400),
    "600 ids": (ids([[1] * 600]), 400),
    "examples that are no UTF-8": (
        {"signature_name": "from_examples", "inputs": [base64_of(b"\xff\xfe\xfd")]},
        400,
    ),
    "empty examples": ({"signature_name": "from_examples", "inputs": [""]}, 400),
    # These are honest, if odd.
    "a text that is no Unicode": (b'{"inputs": ["\\ud800"]}', 200),
    "zeros in a text": ({"inputs": ["a\0b"]}, 200),
    "bytes that are no UTF-8": ({"inputs": [base64_of(b"\xff\xfe")]}, 200),
    "an empty text": ({"inputs": [""]}, 200),
}
EXAMPLES = {  # of POST m:classify
    "none": (examples([]), 400),
    "numbers": (examples([1]), 400),
    "texts and numbers": (examples([{"text": ["a", 1]}]), 400),
    "NaN": (b'{"signature_name": "classify", "examples": [{"text": NaN}]}', 400),
    "another type": (examples([{"text": 1.5}]), 400),
    "a nested value": (examples([{"text": [["a"]]}]), 400),
    "a context that is a list": (examples([{"text": "a"}], context=[1]), 400),
    "too many": (examples([{}] * 140_000), 400),
    "not a signature for it": ({"examples": [{"text": "a"}]}, 400),
    "nested 968": (
        b'{"signature_name": "classify", "examples": ' + b"[" * 968 + b"]" * 968 + b"}",
        400,
    ),
}
BOMB = gzip.compress(b" " * 10_000_000)
CHUNKED = "Transfer-Encoding: chunked"
WHOLE = b'{"inputs": ["a"]}'
RAW = {  # whole requests
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/9.9": (b"GET / HTTP/9.9\r\n\r\n", 400),
    "a header without a colon": (http("GET", "/", b"", "nonsense"), 400),
    "a header with a zero": (http("GET", "/", b"", "a: \0"), 400),
    "a header of 64 KB": (http("GET", "/", b"", "a: " + "x" * 65_536), 400),
    "1,000 headers": (http("GET", "/", b"", *[f"a{i}: 1" for i in range(1000)]), 400),
    "a path of 64 KB": (http("GET", "/" + "x" * 65_536), 400),
    "two lengths": (http("POST", PREDICT, WHOLE, "Content-Length: 1", "Content-Length: 2"), 400),
    "a negative length": (http("POST", PREDICT, WHOLE, "Content-Length: -1"), 400),
    "a length of words": (http("POST", PREDICT, WHOLE, "Content-Length: ten"), 400),
    "a chunk without a size": (http("POST", PREDICT, b"zz\r\na\r\n", CHUNKED), 400),
    "chunks and a length": (
        http("POST", PREDICT, b"0\r\n\r\n", CHUNKED, "Content-Length: 5"),
        400,
    ),
    "an unknown coding": (http("POST", PREDICT, WHOLE, "Transfer-Encoding: x"), 400),
    "no gzip": (http("POST", PREDICT, WHOLE, "Content-Encoding: gzip"), 400),
    "10 MB in 10 KB": (http("POST", PREDICT, BOMB, "Content-Encoding: gzip"), 413),
    "too many bytes": (http("POST", PREDICT, b" " * 1_500_000), 413),
    "another expectation": (http("POST", PREDICT, WHOLE, "Expect: a-pony"), 417),
    "another method": (http("BREW", PREDICT, WHOLE), 400),
    "GET of a prediction": (http("GET", PREDICT), 400),
    "PUT of a prediction": (http("PUT", PREDICT, WHOLE), 400),
    "DELETE of a model": (http("DELETE", "/v1/models/m"), 400),
    "POST of health": (http("POST", "/healthz", WHOLE), 404),
    "no such path": (http("GET", "/favicon.ico"), 404),
    "a path upwards": (http("GET", "/v1/models/../../etc/passwd"), 400),
    "a zero in a path": (http("POST", "/v1/models/m%00:predict", WHOLE), 404),
    "a path that is no UTF-8": (http("POST", "/v1/models/%ff:predict", WHOLE), 404),
    "a line break in a name": (http("POST", "/v1/models/a%0d%0ab:predict", WHOLE), 404),
    "a version of 30 digits": (http("POST", f"/v1/models/m/versions/{'9' * 30}:predict"), 400),
    "a negative version": (http("POST", "/v1/models/m/versions/-1:predict", WHOLE), 400),
    "no such version": (http("POST", "/v1/models/m/versions/9:predict", WHOLE), 404),
    "no such label": (http("POST", "/v1/models/m/labels/x:predict", WHOLE), 400),
    "another site": (http("GET", "/v1/models/m", b"", "Host: evil.example"), 400),
    "a page of another site": (http("POST", PREDICT, WHOLE, "Origin: http://evil.example"), 403),
    # Ordinary, if odd.
    "another content type": (http("POST", PREDICT, WHOLE, "Content-Type: text/html"), 200),
    "chunks": (http("POST", PREDICT, b"11\r\n" + WHOLE + b"\r\n0\r\n\r\n", CHUNKED), 200),
    "an expectation": (http("POST", PREDICT, WHOLE, "Expect: 100-continue"), 100),
    "an upgrade": (http("GET", "/healthz", b"", "Connection: upgrade", "Upgrade: websocket"), 200),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
}
EMBEDDINGS = {
    "nothing": ({}, 400),
    "no input": ({"model": "e"}, 400),
    "token ids": ({"model": "e", "input": [1, 2]}, 400),
    "no texts": ({"model": "e", "input": []}, 400),
    "another model": ({"model": "m", "input": "a"}, 400),
    "no such model": ({"model": "x", "input": "a"}, 404),
    "another encoding": ({"model": "e", "input": "a", "encoding_format": ["float"]}, 400),
    "another size": ({"model": "e", "input": "a", "dimensions": 7}, 400),
    "an unknown key": ({"model": "e", "input": "a", "stream": True}, 400),
    "a model that is a list": ({"model": ["e"], "input": "a"}, 400),
}


@pytest.fixture(scope="module")
def models(exported, tmp_path_factory):
    """A file that serves `m`, a classifier, and `e`, which embeds."""
    path = tmp_path_factory.mktemp("config") / "models.config"
    lines = [
        f'config {{ name: "{name}" base_path: "{exported(kind)[0]}" }}'
        for name, kind in (("m", "classify"), ("e", "embed"))
    ]
    path.write_text("model_config_list {\n" + "\n".join(lines) + "\n}\n")
    return {"model_config_file": str(path), "max_request_bytes": 1_000_000}


async def answered(config, requests):
    """Sends requests, and ordinary ones between them; returns those answered wrongly."""
    wrong, ordinary = {}, http("POST", PREDICT, WHOLE)
    for i, (name, (data, status)) in enumerate(requests.items()):
        found = await send(config.rest_api_port, data)
        if i % 8 == 7 or i == len(requests) - 1:
            assert (await send(config.rest_api_port, ordinary))[0] == 200, name
        if not found or found[0] != status:
            wrong[name] = found
        elif status >= 400:
            body = json.loads(found[2])
            is_form = list(body) == ["error"] and found[1]["content-type"] == JSON
            if not is_form or "\n" in body["error"] or not 0 < len(body["error"]) <= 500:
                wrong[name] = found
    return wrong


def ask_all(models, requests, caplog):
    async def run():
        async with running(**models) as config:
            assert await answered(config, requests) == {}

    with caplog.at_level(logging.WARNING):
        event_loop.run(run())
    assert not caplog.records, caplog.text


def test_bodies(models, caplog):
    requests = {name: (http("POST", PREDICT, body), code) for name, (body, code) in BODIES.items()}
    for path, bodies in (("/v1/models/m:classify", EXAMPLES), ("/v1/embeddings", EMBEDDINGS)):
        for name, (body, code) in bodies.items():
            requests[f"{path}, {name}"] = (http("POST", path, body), code)
    ask_all(models, requests, caplog)


def test_http(models, caplog):
    ask_all(models, RAW, caplog)


def proto(**fields):
    tensor = tf.make_tensor_proto(["a"])
    for name, value in fields.items():
        setattr(tensor, name, value)
    return tensor


def request_of(tensor, signature=""):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    request.inputs["text"].CopyFrom(tensor)
    return request


def sized(*sizes):
    tensor = tf.make_tensor_proto(["a"])
    tensor.tensor_shape.ClearField("dim")
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    return request_of(tensor)


def named(request, name="m"):
    request.model_spec.name = name
    return request


UNKNOWN_RANK = tf.make_tensor_proto(["a"])
UNKNOWN_RANK.tensor_shape.unknown_rank = True
GRPC = {
    "not a message": ("Predict", b"\xff\xff\xff", "INVALID_ARGUMENT"),
    "an empty message": ("Predict", b"", "INVALID_ARGUMENT"),
    "a name that is no UTF-8": ("Predict", b"\x0a\x03\x0a\x01\xff", "INVALID_ARGUMENT"),
    "nested groups": ("Predict", b"\x0b" * 50_000, "INVALID_ARGUMENT"),
    "no such model": ("Predict", named(predict_pb2.PredictRequest(), "x"), "NOT_FOUND"),
    "no inputs": ("Predict", named(predict_pb2.PredictRequest()), "INVALID_ARGUMENT"),
    "another type": ("Predict", request_of(proto(dtype=1)), "INVALID_ARGUMENT"),
    "a type that does not exist": ("Predict", request_of(proto(dtype=9999)), "INVALID_ARGUMENT"),
    "a resource": ("Predict", request_of(proto(dtype=20)), "INVALID_ARGUMENT"),
    "content": ("Predict", request_of(proto(tensor_content=b"xxxx")), "INVALID_ARGUMENT"),
    "unknown rank": ("Predict", request_of(UNKNOWN_RANK), "INVALID_ARGUMENT"),
    "2^62 values": ("Predict", sized(1 << 31, 1 << 31), "INVALID_ARGUMENT"),
    "-1 values": ("Predict", sized(-1), "INVALID_ARGUMENT"),
    "200 axes": ("Predict", sized(*[1] * 200), "INVALID_ARGUMENT"),
    "no such signature": ("Predict", request_of(proto(), "x"), "FAILED_PRECONDITION"),
    "a signature of 100 KB": ("Predict", request_of(proto(), "x" * 10**5), "FAILED_PRECONDITION"),
    "examples that are no UTF-8": (
        "Predict",
        predict_request("m", {"inputs": [b"\xff\xfe\xfd"]}, "from_examples"),
        "INVALID_ARGUMENT",
    ),
    "no examples": (
        "Classify",
        named(classification_pb2.ClassificationRequest()),
        "INVALID_ARGUMENT",
    ),
    "no tasks": ("MultiInference", inference_pb2.MultiInferenceRequest(), "INVALID_ARGUMENT"),
    "no field": (
        "GetModelMetadata",
        named(get_model_metadata_pb2.GetModelMetadataRequest()),
        "INVALID_ARGUMENT",
    ),
    "no such method": ("Explode", b"", "UNIMPLEMENTED"),
    "too many bytes": ("Predict", b"\x0a" + bytes(1_500_000), "RESOURCE_EXHAUSTED"),
}


def test_grpc(models, caplog):
    service = "/tensorflow.serving.PredictionService"

    async def run():
        async with (
            running(**models) as config,
            grpc.aio.insecure_channel(f"127.0.0.1:{config.port}") as channel,
        ):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for name, (method, message, code) in GRPC.items():
                data = message if isinstance(message, bytes) else message.SerializeToString()
                with pytest.raises(grpc.RpcError) as error:
                    await channel.unary_unary(f"{service}/{method}")(data, timeout=20)
                assert error.value.code().name == code, (name, error.value)
                assert "\n" not in error.value.details() and len(error.value.details()) < 600, name
            await stub.Predict(request_of(proto()), timeout=20)

    with caplog.at_level(logging.WARNING):
        event_loop.run(run())
    assert not caplog.records, caplog.text


def test_embeddings_as_the_openai_client_asks(models, exported):
    """The client sends these headers and keys, and asks for base64 unless it is told otherwise."""
    texts = ["the cat sat", "a"]
    headers = ("Authorization: Bearer sk-0", "Content-Type: application/json")
    headers += ("Accept: application/json", "X-Stainless-Lang: python", "User-Agent: OpenAI/Python")
    wanted = exported("embed")[1].reference_outputs(texts)["embedding"]

    async def ask(config, **body):
        body = {"input": texts, "model": "e", "user": "1", **body}
        data = http("POST", "/v1/embeddings", body, *headers)
        status, _, answer = await send(config.rest_api_port, data)
        assert status == 200
        answer = json.loads(answer)
        assert answer["object"] == "list" and answer["model"] == "e"
        return answer["usage"], answer["data"]

    async def run():
        async with running(**models) as config:
            for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
                usage, rows = await ask(config, **encoding, dimensions=24)
                assert usage == {"prompt_tokens": 8, "total_tokens": 8}  # [CLS] the cat sat [SEP]
                kinds = [(row["object"], row["index"]) for row in rows]
                assert kinds == [("embedding", 0), ("embedding", 1)]
                found = [row["embedding"] for row in rows]
                if "base64" in encoding.values():
                    found = [np.frombuffer(base64.b64decode(row), "<f4") for row in found]
                np.testing.assert_allclose(found, wanted, atol=1e-5)
            usage, rows = await ask(config, input=texts[0])
            assert usage["prompt_tokens"] == 5 and len(rows) == 1

    event_loop.run(run())
