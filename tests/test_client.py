"""What export/serving holds: the client's requests, and files that TensorFlow Serving can read."""

import concurrent.futures
import http.server
import json
import pathlib
import re
import runpy
import subprocess
import sys
import threading

import grpc
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from ports import free_port
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2
from warm_python import PYTHON

SERVING = pathlib.Path(__file__).parent.parent / "export" / "serving"


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers with what was asked."""

    def Predict(self, request, context):
        if request.model_spec.name == "none":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no\nmodel")
        answer = predict_pb2.PredictResponse()
        for name, proto in request.inputs.items():
            answer.outputs[name].CopyFrom(proto)
        spec = f"{request.model_spec.name}/{request.model_spec.version_label}"
        answer.outputs["spec"].CopyFrom(tf.make_tensor_proto(spec))
        return answer


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what was asked."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = {"outputs": {**asked["inputs"], "path": self.path}}
        missing = "/none:" in self.path
        body = json.dumps({"error": "there is no model"} if missing else found).encode()
        self.send_response(404 if missing else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def grpc_address():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def rest_address():
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["client.py", *arguments])
    runpy.run_path(str(SERVING / "client.py"), run_name="__main__")


def test_the_client_asks_by_grpc(grpc_address):
    command = [PYTHON, str(SERVING / "client.py"), f"--address={grpc_address}"]
    done = subprocess.run(
        [*command, "--label=stable", "--text=Ünder", "--text=b"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout
    assert f"text: {['Ünder'.encode(), b'b']}" in found.replace("\n", "").replace("' b", "', b")
    assert "spec: b'bert/stable'" in found


def test_the_client_asks_by_rest(rest_address, monkeypatch, capsys):
    texts = ("--text=Who?", "--name=question", "--text=Ada.", "--name=context", "--model=qa")
    run(monkeypatch, f"--address={rest_address}", "--rest", *texts)
    found = capsys.readouterr().out
    assert found == "question: ['Who?']\ncontext: ['Ada.']\npath: /v1/models/qa:predict\n"
    run(monkeypatch, f"--address={rest_address}", "--rest", "--text=a", "--label=canary")
    assert "path: /v1/models/bert/labels/canary:predict" in capsys.readouterr().out


def test_the_client_says_in_a_line_why_there_is_no_answer(
    grpc_address, rest_address, monkeypatch, capsys
):
    def refused(*arguments):
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, *arguments)
        return end.value.code

    assert refused("--text=a", "--text=b", "--name=text") == 2
    assert "error: 2 --text need as many --name, or none; got 1." in capsys.readouterr().err
    nobody, none = f"127.0.0.1:{free_port()}", ("--text=a", "--model=none")
    said = refused(f"--address={grpc_address}", *none)
    assert said == f"error: {grpc_address}: NOT_FOUND: there is no model"
    said = refused(f"--address={rest_address}", "--rest", *none)
    assert said.startswith(f"error: {rest_address}: HTTP Error 404")
    assert said.endswith('{"error": "there is no model"}')
    assert "UNAVAILABLE" in refused(f"--address={nobody}", *none)
    assert "refused" in refused(f"--address={nobody}", "--rest", *none)
    assert "error: " in refused(f"--address={grpc_address}", "--rest", *none)  # no HTTP/1


def test_the_versions_are_what_tensorflow_serving_reads():
    models = text_format.Parse(
        (SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = models.model_config_list.config
    versions = model.model_version_policy.specific.versions
    assert model.name == "bert" and set(model.version_labels.values()) <= set(versions)


def test_the_deployments_name_files_that_there_are():
    compose = yaml.safe_load((SERVING / "compose.yaml").read_text())
    (deployment, service) = yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text())
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    for arguments in (compose["services"]["serving"]["command"], container["args"]):
        files = re.findall(r"/config/(\S+)", " ".join(arguments))
        assert len(files) == 3 and all((SERVING / name).is_file() for name in files)
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
