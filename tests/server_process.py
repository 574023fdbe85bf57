"""A process of kbert.serve, and what is asked of it."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
import tensorflow as tf
from ports import free_port
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from warm_python import PYTHON, pid_of

ROOT = pathlib.Path(__file__).parent.parent


class Server:
    """A process of kbert.serve. flags: without --."""

    def __init__(self, *flags, secure=False):
        self.grpc, self.rest = free_port(), free_port()
        flags = [*flags, f"port={self.grpc}", f"rest_api_port={self.rest}"]
        command = [PYTHON, "-m", "kbert.serve", *(f"--{flag}" for flag in flags)]
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
        status = pathlib.Path(f"/proc/{pid_of(self.process)}/status").read_text()
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


def waiting(server):
    text = server.get("/monitoring/prometheus/metrics")[1]
    return float(re.search(r"^kbert_queue_tokens (.*)$", text, re.MULTILINE)[1])


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
