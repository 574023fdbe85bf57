"""The server as its clients see it: gRPC, REST, ovmsclient, curl; versions, faults, the end."""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from exports import KINDS, texts_of, write_folders
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import free_port
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from kbert.errors import UserError
from kbert.serve import serve
from kbert.serving import saved_model
from kbert.serving.server.settings import ServeConfig

ROOT = pathlib.Path(__file__).parent.parent


class Server:
    """A process of kbert.serve. flags: without --."""

    def __init__(self, *flags, secure=False):
        self.grpc, self.rest = free_port(), free_port()
        flags = [*flags, f"port={self.grpc}", f"rest_api_port={self.rest}"]
        command = [sys.executable, "-m", "kbert.serve", *(f"--{flag}" for flag in flags)]
        environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("ready"):
                break
        else:
            raise AssertionError(self.said)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.channel = None if secure else grpc.insecure_channel(f"127.0.0.1:{self.grpc}")

    def _read(self):
        self.lines.extend(line.rstrip() for line in self.process.stdout)

    @property
    def said(self):
        return "\n".join(self.lines)

    def ask(self, name, request, timeout=120):
        """Calls a method of gRPC."""
        for module in (prediction_service_pb2_grpc, model_service_pb2_grpc):
            for stub in ("PredictionServiceStub", "ModelServiceStub"):
                found = (
                    getattr(getattr(module, stub, object)(self.channel), name, None)
                    if hasattr(module, stub)
                    else None
                )
                if found:
                    return found(request, timeout=timeout)
        raise AttributeError(name)

    def get(self, path, body=None, method=None, headers=None, timeout=120):
        """(status, JSON or text) of REST. body: whatever JSON holds, or bytes."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        address = f"http://127.0.0.1:{self.rest}{path}"
        request = urllib.request.Request(address, body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        with contextlib.suppress(ValueError):
            return status, json.loads(text)
        return status, text.decode()

    def memory(self):
        """MB that the process has in memory."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1e3

    def stop(self):
        """Status at the end after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(120)
        self.reader.join(60)
        if self.channel:
            self.channel.close()
        return status


@contextlib.contextmanager
def serving(*flags, **arguments):
    server = Server(*flags, **arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Function from a kind to (its folder of versions, Method), made once; version 7.

    What is served was made elsewhere, and the weights that it was made of are gone.
    """
    folders = write_folders(tmp_path_factory.mktemp("weights"))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    root, made = tmp_path_factory.mktemp("models"), {}

    def of(kind):
        if kind not in made:
            method = saved_model.load_method(folders[kind], KINDS[kind][3])
            saved_model.save_method(method, elsewhere / kind)
            (root / kind).mkdir()
            (elsewhere / kind).rename(root / kind / "7")
            shutil.rmtree(folders[kind])
            made[kind] = root / kind, method
        return made[kind]

    return of


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """One that serves all kinds, by TensorFlow."""
    lines = [f'config {{ name: "{kind}" base_path: "{exported(kind)[0]}" }}' for kind in KINDS]
    path = tmp_path_factory.mktemp("config") / "models.config"
    path.write_text("model_config_list {\n" + "\n".join(lines) + "\n}\n")
    flags = (f"model_config_file={path}", "engine=tensorflow", "max_request_bytes=2000000")
    with serving(*flags, "max_waiting=99999") as server:
        yield server
        assert "Traceback" not in server.said


def needs(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def predict_request(model, inputs, signature=""):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def arrays(response):
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def example(**texts):
    found = tf.train.Example()
    for name, text in texts.items():
        found.features.feature[name].bytes_list.value.append(text.encode())
    return found


def refused(code, message, ask, *arguments):
    with pytest.raises(grpc.RpcError) as error:
        ask(*arguments)
    assert error.value.code() == getattr(grpc.StatusCode, code), error.value
    assert message in error.value.details() and "\n" not in error.value.details()


@pytest.mark.parametrize("count", [1, 37])
@pytest.mark.parametrize("kind", KINDS)
def test_text_by_grpc_gives_what_kbert_predict_says(server, exported, kind, count):
    """float32, other batches and padding: 1e-5; words, labels and offsets exactly."""
    method = exported(kind)[1]
    texts = texts_of(method, count)
    response = server.ask("Predict", predict_request(kind, texts))
    assert response.model_spec.version.value == 7
    assert response.model_spec.signature_name == "serving_default"
    wanted = method.predicted(**texts)
    assert set(response.outputs) == set(method.contract)
    assert saved_model.largest_difference(arrays(response), wanted) < 1e-5
    for proto in response.outputs.values():
        assert not proto.tensor_content


def test_bytes_that_are_not_utf8_are_answered(server):
    for text in (b"the \xff cat", b"\x80", b"\xf0\x9f"):
        answer = arrays(server.ask("Predict", predict_request("tags", {"text": [text]})))
        found = answer["text"][0, : answer["count"][0]].tolist()
        assert all(part and part in text for part in found)
        assert found or text != b"the \xff cat"
        body = {"inputs": {"text": [{"b64": base64.b64encode(text).decode()}]}}
        assert server.get("/v1/models/tags:predict", body)[0] == 200


def test_other_signatures_by_grpc(server, exported):
    method = exported("pair")[1]
    texts = {"text": ["the cat", "a"], "text_pair": ["dog ran", "mat on"]}
    examples = [example(text=a, text_pair=b) for a, b in zip(*texts.values(), strict=True)]
    serialized = [row.SerializeToString() for row in examples]
    wanted = method.predicted(**texts)
    request = predict_request("pair", {"inputs": serialized}, "from_examples")
    assert saved_model.largest_difference(arrays(server.ask("Predict", request)), wanted) < 1e-5
    ids = {
        n: x.numpy()
        for n, x in method.encode(
            tf.constant(texts["text"]), tf.constant(texts["text_pair"])
        ).items()
    }
    request = predict_request("pair", ids, "from_ids")
    assert saved_model.largest_difference(arrays(server.ask("Predict", request)), wanted) < 1e-5

    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "pair", "classify"
    request.input.example_list.examples.extend(examples)
    found = server.ask("Classify", request).result.classifications
    scores = [[c.score for c in row.classes] for row in found]
    np.testing.assert_allclose(scores, wanted["probabilities"], atol=1e-5)
    assert [c.label for c in found[0].classes] == ["no", "yes", "perhaps"]

    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = "regress", "regress"
    request.input.example_list.examples.extend(examples)
    found = [row.value for row in server.ask("Regress", request).result.regressions]
    wanted = exported("regress")[1].predicted(**texts)["score"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    both = inference_pb2.MultiInferenceRequest()
    both.input.example_list.examples.extend(examples)
    task = both.tasks.add(method_name="tensorflow/serving/regress")
    task.model_spec.name, task.model_spec.signature_name = "regress", "regress"
    (result,) = server.ask("MultiInference", both).results
    assert result.model_spec.version.value == 7
    np.testing.assert_allclose([r.value for r in result.regression_result.regressions], found)


def test_ids_keep_their_columns(server):
    ids = np.array([[2, 5, 6, 3, 0, 0]], np.int32)
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int32)}
    inputs["token_type_ids"] = np.zeros_like(ids)
    answer = arrays(server.ask("Predict", predict_request("encode", inputs, "from_ids")))
    assert answer["last_hidden_state"].shape == (1, 6, 24)


def test_only_some_outputs(server):
    request = predict_request("classify", {"text": ["the cat"]})
    request.output_filter.append("score")
    assert set(server.ask("Predict", request).outputs) == {"score"}
    request.output_filter.append("nothing")
    refused("INVALID_ARGUMENT", "has no output nothing; it has", server.ask, "Predict", request)


def test_metadata_and_status(server):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "pair"
    found = get_model_metadata_pb2.SignatureDefMap()
    answer = server.ask("GetModelMetadata", request)
    answer.metadata["signature_def"].Unpack(found)
    assert answer.model_spec.version.value == 7
    assert set(found.signature_def["serving_default"].inputs) == {"text", "text_pair"}
    request.metadata_field[:] = ["other"]
    refused("INVALID_ARGUMENT", "must be 'signature_def'", server.ask, "GetModelMetadata", request)

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "pair"
    (status,) = server.ask("GetModelStatus", request).model_version_status
    assert (status.version, status.state) == (7, 30)
    request.model_spec.version.value = 8
    refused("NOT_FOUND", "no version 8", server.ask, "GetModelStatus", request)

    code, found = server.get("/v1/models/pair")
    assert code == 200 and found["model_version_status"] == [
        {"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
    code, found = server.get("/v1/models/pair/versions/7/metadata")
    assert code == 200 and found["model_spec"]["version"] == "7"
    default = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["inputs"]["text"]["dtype"] == "DT_STRING"


def test_rest(server, exported):
    texts = {"text": ["the cat", "ran"], "text_pair": ["on", "a mat"]}
    wanted = exported("pair")[1].predicted(**texts)
    code, columns = server.get("/v1/models/pair:predict", {"inputs": texts})
    assert code == 200
    assert saved_model.largest_difference(columns["outputs"], wanted) < 1e-5
    rows = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    code, found = server.get("/v1/models/pair/versions/7:predict", {"instances": rows})
    assert code == 200 and [row["label"] for row in found["predictions"]] == wanted["label"]
    assert set(found["predictions"][0]) == {"label", "score", "probabilities"}
    code, found = server.get("/v1/models/embed:predict", {"instances": ["the cat"]})
    assert code == 200 and len(found["predictions"][0]) == 24  # one output has no name
    code, found = server.get("/v1/models/embed:predict", {"inputs": ["the cat"]})
    assert code == 200 and len(found["outputs"][0]) == 24
    body = {"signature_name": "classify", "examples": rows}
    code, found = server.get("/v1/models/pair:classify", body)
    assert code == 200 and [label for label, _ in found["results"][0]] == ["no", "yes", "perhaps"]
    body = {
        "signature_name": "regress",
        "context": {"text": "the"},
        "examples": [{"text_pair": "a"}],
    }
    code, found = server.get("/v1/models/regress:regress", body)
    wanted = exported("regress")[1].predicted(["the"], ["a"])["score"]
    assert code == 200 and found["results"] == pytest.approx(wanted, abs=1e-5)
    ids = {"input_ids": [[2, 5, 3]], "attention_mask": [[1, 1, 1]], "token_type_ids": [[0, 0, 0]]}
    body = {"signature_name": "from_ids", "inputs": ids}
    assert server.get("/v1/models/classify:predict", body)[0] == 200


BAD = [
    ("/v1/models/none:predict", {"inputs": ["a"]}, 404, "there is no model 'none'"),
    ("/v1/models/tags/versions/3:predict", {"inputs": ["a"]}, 404, "has no version 3"),
    ("/v1/models/tags/labels/x:predict", {"inputs": ["a"]}, 400, "no label 'x'"),
    ("/v1/models/%E2%82%AC:predict", {"inputs": ["a"]}, 404, "no model '€'"),
    (
        "/v1/models/tags:predict",
        b'{"inputs": ["a"], "signature_name": "\\ud800"}',
        400,
        "not Unicode",
    ),
    ("/v1/models/tags:explain", {"inputs": ["a"]}, 400, "is not served"),
    ("/v1/models", None, 400, "is not served"),
    ("/", None, 404, "is not served"),
    ("/v2/models/tags", None, 404, "is not served"),
    ("/v1/models/tags:predict", b"{", 400, "the body is not JSON"),
    ("/v1/models/tags:predict", b"\xff", 400, "the body is not JSON"),
    ("/v1/models/tags:predict", b"[" * 150_000, 400, "the body is not JSON"),
    ("/v1/models/tags:predict", b"", 400, "the body is not JSON"),
    ("/v1/models/tags:predict", [1], 400, "no JSON object"),
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
    ("/v1/models/pair:predict", {"inputs": ["a"]}, 400, "takes text, text_pair: name them"),
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
    ("/v1/models/tags:predict", {"inputs": ["a"], "signature_name": 3}, 400, "is a text"),
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
        "as many rows as each other",
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
    bad("INVALID_ARGUMENT", "the request names no model; there is", "", {"text": ["a"]})
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
    refused("INVALID_ARGUMENT", "a signature of its own", server.ask, "MultiInference", request)
    request.tasks[1].model_spec.name = "pair"
    refused("INVALID_ARGUMENT", "ask the same model", server.ask, "MultiInference", request)
    features = {"input_ids": [[9_000_000]], "attention_mask": [[1]], "token_type_ids": [[0]]}
    bad("INVALID_ARGUMENT", "input_ids must be 0 to 25", "classify", features, "from_ids")
    choices = {"text": ["a"], "choices": [["b"] * 129]}
    bad("INVALID_ARGUMENT", "129 choices for a text; 128 are", "choose", choices)
    unknown = server.channel.unary_unary("/tensorflow.serving.PredictionService/Nothing")
    refused("UNIMPLEMENTED", "", unknown, b"")
    known = server.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    refused("INVALID_ARGUMENT", "no message of this method", known, b"\xff\xff\xff garbage")
    assert server.get("/healthz")[0] == 200


def waiting(server):
    text = server.get("/monitoring/prometheus/metrics")[1]
    return float(re.search(r"^kbert_waiting_texts (.*)$", text, re.MULTILINE)[1])


def test_what_clients_give_up_is_forgotten(server):
    """By a deadline of gRPC, and by REST clients that have gone."""
    texts = ["the cat sat on a mat " * 5000] * 16  # many times what is given up after
    stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
    call = stub.Predict.future(predict_request("tags", {"text": texts}), timeout=2)
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


def test_health_and_metrics(server):
    stub = health_pb2_grpc.HealthStub(server.channel)
    assert stub.Check(health_pb2.HealthCheckRequest()).status == 1
    assert server.get("/healthz") == (200, {"status": "alive"})
    assert server.get("/readyz") == (200, {"status": "ready"})
    server.get("/v1/models/embed:predict", {"inputs": ["a"]})
    server.get("/v1/models/made-up:predict", {"inputs": ["a"]})
    text = server.get("/monitoring/prometheus/metrics")[1]
    assert 'kbert_requests_total{method="rest_predict",model="embed",status="OK"}' in text
    assert 'kbert_model_version{model="embed",version="7"} 1.0' in text
    assert "made-up" not in text and 'method="rest_predict",model="",status="NOT_FOUND"' in text
    assert "kbert_waiting_texts 0.0" in text


@needs("curl")
def test_curl_and_the_projects_client(server):
    address = f"http://127.0.0.1:{server.rest}/v1/models/fill_mask:predict"
    body = '{"inputs": {"text": ["the [MASK] sat"]}}'
    done = subprocess.run(["curl", "-s", "-d", body, address], capture_output=True, text=True)
    words = json.loads(done.stdout)["outputs"]["words"]
    assert np.array(words).shape == (1, 1, 5)
    client = [sys.executable, str(ROOT / "export/serving/client.py"), "--model=fill_mask"]
    command = [*client, f"--address=127.0.0.1:{server.grpc}", "--text=the [MASK] sat"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and words[0][0][0] in done.stdout, done.stderr[-500:]


def test_ovmsclient(server, exported):
    """A client that others wrote, which asks for version 0 where it means the newest."""
    ovmsclient = pytest.importorskip("ovmsclient")
    texts = ["the cat sat", "a"]
    wanted = exported("embed")[1].predicted(texts)["embedding"]
    by_grpc = ovmsclient.make_grpc_client(f"127.0.0.1:{server.grpc}")
    assert "text" in by_grpc.get_model_metadata("embed")["inputs"]
    for client in (by_grpc, ovmsclient.make_http_client(f"127.0.0.1:{server.rest}")):
        found = client.predict({"text": np.array([text.encode() for text in texts])}, "embed")
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert client.get_model_status("embed")[7]["state"] == "AVAILABLE"


def reload_request(*models):
    request = model_management_pb2.ReloadConfigRequest()
    for name, path, versions, labels in models:
        config = request.config.model_config_list.config.add(name=name, base_path=str(path))
        if versions:
            config.model_version_policy.specific.versions.extend(versions)
        for label, number in labels.items():
            config.version_labels[label] = number
    return request


def version_of(server, name, **spec):
    request = predict_request(name, {"text": ["a"]})
    for field, value in spec.items():
        if field == "version":
            request.model_spec.version.value = value
        else:
            request.model_spec.version_label = value
    return server.ask("Predict", request).model_spec.version.value


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_versions_come_and_go(exported, tmp_path):
    """A canary with labels, a roll-back, a broken version, a reload, and the end under load."""
    source, base = exported("embed")[0] / "7", tmp_path / "bert"
    shutil.copytree(source, base / "1")
    flags = ("model_name=bert", f"model_base_path={base}", "file_system_poll_wait_seconds=0.1")
    with serving(*flags, "engine=tensorflow", "enable_model_warmup=false") as server:
        failed, seen, over = [], set(), threading.Event()

        def ask_on():
            while not over.is_set():
                try:
                    seen.add(version_of(server, "bert"))
                except grpc.RpcError as error:
                    failed.append(error)

        threads = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        shutil.copytree(source, base / "2")  # file by file: it may be seen half done
        wait_for(lambda: seen == {1, 2})
        wait_for(lambda: "version 1 is let go" in server.said)
        refused("NOT_FOUND", "has no version 1", lambda: version_of(server, "bert", version=1))

        (base / "3").mkdir()
        (base / "3" / "saved_model.pb").write_bytes(b"\x12\xffnot a model")
        wait_for(lambda: "bert version 3: cannot read" in server.said)
        assert version_of(server, "bert") == 2
        states = server.get("/v1/models/bert")[1]["model_version_status"]
        assert [(s["version"], s["state"]) for s in states][:2] == [
            ("3", "END"),
            ("2", "AVAILABLE"),
        ]
        assert "cannot read" in states[0]["status"]["error_message"]
        shutil.rmtree(base / "3")
        shutil.copytree(source, tmp_path / "3")
        (tmp_path / "3").rename(base / "3")  # mended
        wait_for(lambda: version_of(server, "bert") == 3)

        labels = {"stable": 2, "canary": 3}
        server.ask("HandleReloadConfigRequest", reload_request(("bert", base, (2, 3), labels)))
        assert version_of(server, "bert", label="stable") == 2
        assert version_of(server, "bert", label="canary") == version_of(server, "bert") == 3
        asked = "/v1/models/bert/labels/stable:predict"
        assert server.get(asked, {"inputs": ["a"]})[0] == 200

        bad = reload_request(("bert", base, (2, 3), {"stable": 9}))
        ask = (server.ask, "HandleReloadConfigRequest")
        refused("FAILED_PRECONDITION", "label stable is for version 9", *ask, bad)
        bad = reload_request(("bert", base, (), {}), ("other", tmp_path / "none", (), {}))
        refused("NOT_FOUND", "model other: no versions in", *ask, bad)
        bad = reload_request(("bert", base, (), {}), ("bert", base, (), {}))
        refused("INVALID_ARGUMENT", "a name of its own", *ask, bad)
        broken = tmp_path / "broken"
        (broken / "2").mkdir(parents=True)
        (broken / "2" / "saved_model.pb").write_bytes(b"nothing")
        refused("NOT_FOUND", "cannot read", *ask, reload_request(("bert", broken, (), {})))
        refused("NOT_FOUND", "no versions", *ask, reload_request(("else", broken / "2", (), {})))
        assert version_of(server, "bert", label="stable") == 2  # as before

        shutil.rmtree(base / "3")  # roll-back
        server.ask("HandleReloadConfigRequest", reload_request(("bert", base, (), {})))
        assert version_of(server, "bert") == 2
        server.ask(
            "HandleReloadConfigRequest", reload_request(("bert", exported("embed")[0], (), {}))
        )
        assert version_of(server, "bert") == 7

        over.set()
        for thread in threads:
            thread.join()
        assert not failed and server.stop() == 0
    assert "stopping" in server.said and "Traceback" not in server.said


def test_the_end_answers_what_has_begun(exported):
    """None of its limits is reached, on a slow machine either."""
    flags = ("model_name=b", f"model_base_path={exported('tags')[0]}", "engine=tensorflow")
    limits = ("max_waiting=99999", "drain_seconds=300", "rest_api_timeout_in_ms=300000")
    with serving(*flags, *limits) as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == 1
        texts = ["the cat sat on a mat " * 500] * 16
        stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
        begun = stub.Predict.future(predict_request("b", {"text": texts}))
        found = {}

        def ask_rest():
            asked = {"inputs": texts[:4]}
            found["rest"] = server.get("/v1/models/b:predict", asked, timeout=300)

        wait_for(lambda: waiting(server) > 0 or begun.done())
        before = waiting(server)
        thread = threading.Thread(target=ask_rest)
        thread.start()
        wait_for(lambda: waiting(server) > before or not thread.is_alive())
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == 2
        assert len(begun.result(300).outputs["count"].int_val) == 16
        thread.join(300)
        assert found["rest"][0] == 200
        assert server.process.wait(300) == 0  # though somebody watches its health
        server.reader.join(60)
        assert "Traceback" not in server.said


def test_a_second_signal_ends_it_at_once(exported):
    """Without waiting for what is computed, nor for the thread that does."""
    flags = ("model_name=b", f"model_base_path={exported('tags')[0]}", "engine=tensorflow")
    limits = ("max_waiting=99999", "drain_seconds=300", "enable_model_warmup=false")
    with serving(*flags, *limits) as server:
        texts = ["the cat sat on a mat " * 5000] * 32
        stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
        begun = stub.Predict.future(predict_request("b", {"text": texts}))
        wait_for(lambda: waiting(server) > 0)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping" in server.said)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == -signal.SIGINT
        assert begun.code() == grpc.StatusCode.UNAVAILABLE
        server.reader.join(60)
        assert "Traceback" not in server.said


def test_a_signal_ends_it_while_it_loads(exported):
    base = exported("tags")[0]
    command = [sys.executable, "-m", "kbert.serve", f"--model_base_path={base}", "--port=0"]
    command += ["--engine=tensorflow", f"--rest_api_port={free_port()}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout.readline() == "loading default\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "stopping: requests that have begun are answered\n"
    assert process.wait(60) == 0


@needs("openssl", "curl")
def test_tls(exported, tmp_path):
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in ("server", "client", "stranger"):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *files, *subject)
    base = exported("embed")[0]
    flags = [f"ssl_certificate={tmp_path}/server.pem", f"ssl_key={tmp_path}/server.key"]
    flags += [f"ssl_client_ca={tmp_path}/client.pem", "model_name=b", f"model_base_path={base}"]
    with serving(*flags, "engine=tensorflow", "enable_model_warmup=false", secure=True) as server:

        def ask(name):
            read = [
                (tmp_path / f).read_bytes() for f in ("server.pem", f"{name}.key", f"{name}.pem")
            ]
            credentials = grpc.ssl_channel_credentials(*read)
            with grpc.secure_channel(f"localhost:{server.grpc}", credentials) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                return stub.Predict(predict_request("b", {"text": ["a"]}), timeout=120)

        def curl(name):
            address = f"https://localhost:{server.rest}/v1/models/b:predict"
            files = ["--cacert", "server.pem", "--cert", f"{name}.pem", "--key", f"{name}.key"]
            command = ["curl", "-s", *files, "-d", '{"inputs": ["a"]}', address]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

        assert ask("client").model_spec.version.value == 7
        assert "outputs" in curl("client").stdout
        with pytest.raises(grpc.RpcError):
            ask("stranger")
        assert curl("stranger").returncode != 0
        assert "https://" in server.said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "name a folder of numbered exports with --model_base_path"),
        ({"model_base_path": "a", "model_config_file": "b"}, "--model_config_file for several"),
        ({"model_base_path": "a", "port": 0, "rest_api_port": 0}, "are both 0"),
        (
            {"model_base_path": "a", "demo": True, "rest_api_port": 0},
            "--demo is a page on the port",
        ),
        ({"model_config_file": "a", "model_name": "b"}, "--model_name is for --model_base_path"),
        (
            {"model_base_path": "a", "model_config_file_poll_wait_seconds": 1.0},
            "--model_config_file_poll_wait_seconds is for --model_config_file.",
        ),
        (
            {"model_base_path": "a", "rest_api_port": 0, "rest_api_timeout_in_ms": 1},
            "--rest_api_timeout_in_ms is for REST",
        ),
        ({"model_base_path": "a", "ssl_key": "a"}, "go together"),
        ({"model_base_path": "a", "ssl_client_ca": "a"}, "needs --ssl_certificate"),
        ({"model_base_path": "a", "engine": "fast"}, "engine must be one of"),
        ({"model_base_path": "a", "max_waiting": 0}, "max_waiting must be >= 1; got 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ServeConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_base_path": "/nothing/here"}, "no versions in /nothing/here; a version is"),
        ({"model_base_path": "{base}/7"}, "This is an export itself: --model_base_path={base}"),
        ({"model_config_file": "/nothing"}, "cannot read the models of /nothing"),
        ({"model_base_path": "{base}", "port": "{taken}"}, "cannot listen on 127.0.0.1:{taken}"),
        (
            {"model_base_path": "{base}", "rest_api_port": "{taken}", "port": 0},
            "cannot listen on 127.0.0.1:{taken}",
        ),
        (
            {"model_base_path": "{base}", "ssl_key": "/nothing", "ssl_certificate": "/nothing"},
            "--ssl_key: cannot read /nothing: No such file",
        ),
    ],
)
def test_what_cannot_be_served(exported, settings, message):
    base = exported("embed")[0]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        settings = {
            name: taken
            if value == "{taken}"
            else value.format(base=base)
            if isinstance(value, str)
            else value
            for name, value in settings.items()
        }
        config = ServeConfig(
            **{"engine": "tensorflow", "enable_model_warmup": False, "port": free_port()} | settings
        )
        with pytest.raises(UserError, match=re.escape(message.format(base=base, taken=taken))):
            asyncio.run(serve(config))


def test_the_program_says_what_is_wrong():
    command = [sys.executable, "-m", "kbert.serve", "--model_base_path=/nothing/here"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: model default: no versions in")
    assert done.stderr.count("\n") == 1 and done.stdout == "loading default\n"


def test_too_much_is_refused_and_memory_stays(exported):
    """What comes above the limits is refused at once, with the codes for "later"."""
    base = exported("tags")[0]
    flags = ("model_name=b", f"model_base_path={base}", "engine=tensorflow", "max_waiting=400")
    with serving(*flags, "enable_model_warmup=false") as server:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
        text = "the cat sat on a mat " * 100  # 525 tokens or so, 33 times the length of the model

        def flood(count, texts):
            request = predict_request("b", {"text": texts})
            asked = [stub.Predict.future(request) for _ in range(count)]
            return {
                (call.code(), (call.details() or "")[:22].strip("0123456789 ;")) for call in asked
            }

        for _ in range(4):  # what a first load takes, it keeps
            flood(20, [text] * 3)
        before = server.memory()
        told = set().union(*(flood(20, [text] * 3) for _ in range(12)))
        busy = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told == {(grpc.StatusCode.OK, ""), (busy, "texts are waiting")}
        assert server.memory() < before * 1.1 + 20
        full = asyncio.run(_statuses(server.rest, text, 25))
        assert set(full) == {200, 503}
        ask = (server.ask, "Predict", predict_request("b", {"text": [text] * 20}))
        refused("INVALID_ARGUMENT", "20 texts in one request, which count as 660", *ask)
        assert server.get("/v1/models/b:predict", {"inputs": ["a"]})[0] == 200


async def _statuses(port, text, count):
    import aiohttp

    address, body = f"http://127.0.0.1:{port}/v1/models/b:predict", {"inputs": [text] * 3}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask():
            async with session.post(address, json=body) as answer:
                await answer.read()
                return answer.status

        return await asyncio.gather(*(ask() for _ in range(count)))


@pytest.mark.slow
def test_64_clients_20000_requests_and_a_swap(exported, tmp_path):
    """None fails, every answer is right, and memory is flat."""
    source, method = exported("classify")
    base = tmp_path / "bert"
    shutil.copytree(source / "7", base / "1")
    texts = [text for text in texts_of(method, 60)["text"] if len(text) < 2000]
    wanted = method.predicted(texts)["probabilities"]
    flags = ("model_name=bert", f"model_base_path={base}")
    with serving(*flags, "engine=tensorflow") as server:
        versions, worst, memory, numbers = {1: 0, 2: 0}, [0.0], [], iter(range(20_000))

        async def client(stub):
            for i in numbers:
                request = predict_request("bert", {"text": [texts[i % len(texts)]]})
                answer = await stub.Predict(request, timeout=60)
                versions[answer.model_spec.version.value] += 1
                apart = arrays(answer)["probabilities"][0] - wanted[i % len(texts)]
                worst[0] = max(worst[0], np.abs(apart).max())
                if i % 1000 == 999:
                    memory.append(server.memory())
                if i == 10_000:
                    shutil.copytree(source / "7", tmp_path / "2")
                    (tmp_path / "2").rename(base / "2")

        async def clients():
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                await asyncio.gather(*(client(stub) for _ in range(64)))

        asyncio.run(clients())
        assert sum(versions.values()) == 20_000 and min(versions.values()) > 2_000
        assert worst[0] < 1e-5
        assert max(memory[-3:]) < memory[4] * 1.15, memory
