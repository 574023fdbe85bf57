"""The server as its clients see it: gRPC, REST, ovmsclient, curl."""

import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from exports import kinds, texts_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import ROOT, arrays, example, needs, predict_request, refused
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    regression_pb2,
)
from warm_python import PYTHON

from kbert.serving import saved_model


@pytest.mark.parametrize("count", [1, 37])
@pytest.mark.parametrize("kind", kinds())
def test_text_by_grpc_gives_what_kbert_predict_says(server, exported, kind, count):
    """float32, other batches and padding: 1e-5; words, labels and offsets exactly."""
    method = exported(kind)[1]
    texts = texts_of(method, count)
    response = server.ask("Predict", predict_request(kind, texts))
    assert response.model_spec.version.value == 7
    assert response.model_spec.signature_name == "serving_default"
    wanted = method.reference_outputs(**texts)
    assert set(response.outputs) == set(method.output_spec)
    assert saved_model.largest_difference(arrays(response), wanted) < 1e-5
    for proto in response.outputs.values():
        assert not proto.tensor_content


def test_other_signatures_by_grpc(server, exported):
    method = exported("pair")[1]
    texts = {"text": ["the cat", "a"], "text_pair": ["dog ran", "mat on"]}
    examples = [example(text=a, text_pair=b) for a, b in zip(*texts.values(), strict=True)]
    serialized = [row.SerializeToString() for row in examples]
    wanted = method.reference_outputs(**texts)
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
    wanted = exported("regress")[1].reference_outputs(**texts)["score"]
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
    wanted = exported("pair")[1].reference_outputs(**texts)
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
    wanted = exported("regress")[1].reference_outputs(["the"], ["a"])["score"]
    assert code == 200 and found["results"] == pytest.approx(wanted, abs=1e-5)
    ids = {"input_ids": [[2, 5, 3]], "attention_mask": [[1, 1, 1]], "token_type_ids": [[0, 0, 0]]}
    body = {"signature_name": "from_ids", "inputs": ids}
    assert server.get("/v1/models/classify:predict", body)[0] == 200


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
    assert "kbert_queue_tokens 0.0" in text


@needs("curl")
def test_curl_and_the_projects_client(server):
    address = f"http://127.0.0.1:{server.rest}/v1/models/fill_mask:predict"
    body = '{"inputs": {"text": ["the [MASK] sat"]}}'
    done = subprocess.run(["curl", "-s", "-d", body, address], capture_output=True, text=True)
    words = json.loads(done.stdout)["outputs"]["words"]
    assert np.array(words).shape == (1, 1, 5)
    client = [PYTHON, str(ROOT / "export/serving/client.py"), "--model=fill_mask"]
    command = [*client, f"--address=127.0.0.1:{server.grpc}", "--text=the [MASK] sat"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and words[0][0][0] in done.stdout, done.stderr[-500:]


def test_ovmsclient(server, exported):
    """A client that others wrote, which asks for version 0 where it means the newest."""
    ovmsclient = pytest.importorskip("ovmsclient")
    texts = ["the cat sat", "a"]
    wanted = exported("embed")[1].reference_outputs(texts)["embedding"]
    by_grpc = ovmsclient.make_grpc_client(f"127.0.0.1:{server.grpc}")
    assert "text" in by_grpc.get_model_metadata("embed")["inputs"]
    for client in (by_grpc, ovmsclient.make_http_client(f"127.0.0.1:{server.rest}")):
        found = client.predict({"text": np.array([text.encode() for text in texts])}, "embed")
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert client.get_model_status("embed")[7]["state"] == "AVAILABLE"
