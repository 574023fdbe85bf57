"""Targets: what clients of the server send, and its file of models."""

import asyncio
import functools
import json
import types

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from kbert.config import BertConfig
from kbert.server.demo import Demo
from kbert.server.embeddings import Embeddings
from kbert.server.errors import RequestError
from kbert.server.gate import Gate
from kbert.server.grpc_api import Servicer
from kbert.server.models import Models, Version, read_configs
from kbert.server.rest_api import RestApi
from kbert.server.servable import Servable, Signature
from kbert.server.service import Service
from kbert.settings.serving import ServeConfig

from .data import as_json
from .harness import Fault, reads, reads_files

FEATURES = ("input_ids", "attention_mask", "token_type_ids")
CONFIG = BertConfig(vocab_size=9, hidden_size=2, num_attention_heads=1, max_position_embeddings=8)
ABOUT = {"method": "classify", "max_seq_length": 8, "padded": {"labels": ""}, "weights": []}


def _spec(name, dtype, *shape):
    return tf.TensorSpec([None, *shape], dtype, name)


def _signatures():
    """Of every dtype and rank that clients may send."""
    inputs = {
        "serving_default": [_spec("text", tf.string)],
        "pair": [_spec("text", tf.string), _spec("text_pair", tf.string)],
        "choose": [_spec("text", tf.string), _spec("choices", tf.string, None)],
        "from_ids": [_spec(name, tf.int32, None) for name in FEATURES],
        "numbers": [_spec("x", tf.float32, 2), _spec("y", tf.int64), _spec("z", tf.bool)],
        "halves": [_spec("x", tf.float16), _spec("y", tf.uint8), _spec("z", tf.bfloat16)],
        "one": [tf.TensorSpec([], tf.float32, "x")],
        "any": [tf.TensorSpec(None, tf.float64, "x")],
        "from_examples": [_spec("inputs", tf.string)],
        "examples_again": [_spec("inputs", tf.string)],
    }
    outputs = {name: _spec(name, tf.string) for name in ("classes", "scores", "outputs")}
    return {
        name: Signature(name, None, {spec.name: spec for spec in specs}, outputs)
        for name, specs in inputs.items()
    }


class _Batcher:
    """Checks requests as the real one does, and answers without a model."""

    most_tokens = 128

    async def in_turn(self, size, function, *arguments):
        return function(*arguments)

    async def compute(self, servable, signature, inputs, report_tokens):
        rows = servable.check(signature, inputs) or 1
        if signature.name == "attention":
            texts = {name: np.array(["a"], object) for name in ("tokens", "notes")}
            return {**texts, "weights": np.ones([1, 1, 1, 1])}
        found = {"classes": np.full((rows, 2), b"\xffa", object)}
        found["scores"] = np.full((rows, 2), 0.5, np.float32)
        return found | {"outputs": np.full(rows, np.nan, np.float32)}


@functools.cache
def _service():
    """The real service, with the models `m`, an export of kbert, and `other`, which is none."""
    models = Models(None)
    for name, metadata in (("m", ABOUT), ("other", None)):
        servable = object.__new__(Servable)
        servable.metadata, servable.backend, servable._config = metadata, "tensorflow", CONFIG
        servable.folder = "models/m/7"
        servable.signatures, servable.definitions = _signatures(), {}
        models._versions[name] = {7: Version(7, state=30, servable=servable)}
        models._configs[name] = model_server_config_pb2.ModelConfig(name=name)
        models._configs[name].version_labels["stable"] = 7
    return Service(models, _Batcher())


@functools.cache
def _demo():
    return Demo(_service())


@functools.cache
def _loop():
    return asyncio.new_event_loop()


_METRICS = types.SimpleNamespace(answered=lambda *arguments: str(arguments).encode())


class _Body:
    def __init__(self, data):
        self._data = data

    async def iter_chunked(self, size):
        for begin in range(0, len(self._data), size):
            yield self._data[begin : begin + size]


EXAMPLES = {
    "signature_name": "from_examples",
    "context": {"a": [1, 2]},
    "examples": [{"text": "the cat", "n": 3}, {"text": {"b64": "AP8="}, "f": [0.5, 1]}],
}
PREDICTIONS = [
    {"inputs": {"text": ["the cat", {"b64": "AP8="}]}},
    {"instances": ["the cat", "\u00fc"]},
    {"instances": [{"text": "a", "text_pair": "b"}], "signature_name": "pair"},
    {"inputs": {"text": ["a"], "choices": [["b", "c"]]}, "signature_name": "choose"},
    {"inputs": {name: [[1, 0, 1]] for name in FEATURES}, "signature_name": "from_ids"},
    {"inputs": {"x": [[1, 2.5]], "y": [2], "z": [True]}, "signature_name": "numbers"},
    {"inputs": {"x": [1], "y": [2], "z": [1]}, "signature_name": "halves"},
    {"inputs": 0.5, "signature_name": "one"},
    {"inputs": [[[1], [2]]], "signature_name": "any"},
]


def _rest_seeds():
    seeds = [b"POST /v1/models/m:predict\n" + as_json(asked) for asked in PREDICTIONS]
    seeds.append(b"POST /v1/models/other/versions/7:predict\n" + as_json(PREDICTIONS[0]))
    for what in (b"classify", b"regress"):
        seeds.append(b"POST /v1/models/m:" + what + b"\n" + as_json(EXAMPLES))
    asked = {"model": "m", "version": 7, "text": "the cat", "text_pair": "\u00fc"}
    seeds += [b"POST /demo/attention\n" + as_json(asked), b"GET /demo/models", b"GET /"]
    return [*seeds, b"GET /v1/models/m/labels/stable", b"GET /v1/models/m"]


@reads(_rest_seeds)
def rest(data):
    line, _, body = data.partition(b"\n")
    method, _, path = line.decode("utf-8", "surrogateescape").partition(" ")
    server = object.__new__(RestApi)
    server._service, server._metrics = _service(), _METRICS
    server._embeddings = Embeddings(server._service)
    server._config = ServeConfig(model_base_path="x", max_request_bytes=9000)
    server._seconds, server._gate, server._demo = 30, Gate(_METRICS, 512), _demo()
    request = types.SimpleNamespace(method=method, path=path, content=_Body(body), remote=None)
    answer = _loop().run_until_complete(server._counted(request))
    said = json.loads(answer.body) if answer.content_type != "text/html" else None
    if answer.status == 500:
        raise Fault(f"status 500: {said}")
    if answer.status != 200:
        raise RequestError("INVALID_ARGUMENT", said["error"])


class _Context:
    def peer(self):
        return "-"

    async def abort(self, code, message):
        raise RequestError(code.name, message)


_REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
    "MultiInference": inference_pb2.MultiInferenceRequest,
}
_DTYPES = {"x": {"numbers": tf.float32, "halves": tf.float16, "one": tf.float32, "any": tf.float64}}


def _predict_requests():
    signatures = _signatures()
    for asked in PREDICTIONS:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "m"
        name = request.model_spec.signature_name = asked.get("signature_name", "")
        specs = signatures[name or "serving_default"].inputs
        for spec in specs.values():
            values = np.zeros([size or 2 for size in (spec.shape if spec.shape.rank else [])])
            array = values.astype(str) if spec.dtype == tf.string else values
            proto = tf.make_tensor_proto(array, spec.dtype)
            if spec.dtype == tf.float32:
                proto.float_val.extend(np.frombuffer(proto.tensor_content, np.float32))
                proto.ClearField("tensor_content")
            request.inputs[spec.name].CopyFrom(proto)
        yield request


def _grpc_seeds():
    requests = list(_predict_requests())
    for kind in ("Classify", "Regress", "MultiInference"):
        request = _REQUESTS[kind]()
        example = tf.train.Example()
        example.features.feature["text"].bytes_list.value.append(b"the cat")
        listed = request.input.example_list_with_context
        if kind == "MultiInference":
            listed = request.input.example_list
            for method, name in (("classify", "from_examples"), ("regress", "examples_again")):
                task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
                task.model_spec.name, task.model_spec.signature_name = "m", name
        else:
            request.model_spec.name, request.model_spec.signature_name = "m", "from_examples"
            listed.context.features.feature["n"].int64_list.value.append(3)
        listed.examples.append(example)
        requests.append(request)
    kinds = list(_REQUESTS.values())
    return [
        bytes([kinds.index(type(request))]) + request.SerializeToString() for request in requests
    ]


@reads(_grpc_seeds)
def grpc(data):
    name = list(_REQUESTS)[data[0] % len(_REQUESTS) if data else 0]
    servicer = Servicer(_service(), Gate(_METRICS, 9), None, allow_reload=False)
    _loop().run_until_complete(servicer.answer(name, data[1:], _Context()))


MODELS_CONFIG = b"""\
model_config_list {
  config {
    name: "bert" base_path: "models/bert" model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 }
  }
  config: < name: 'b\\303\\274' base_path: "x"
    model_version_policy: { latest: { num_versions: 2 } } >
}
"""
CUSTOM = b"""\
model_config_list { config { name: "x" base_path: "y" } } custom_model_config {
 [type.googleapis.com/google.protobuf.Struct] {
 fields { key: "a" value { list_value { values { number_value: 1e400 } } } } } }"""


@reads_files(lambda: {"models.config": [MODELS_CONFIG, CUSTOM, b"model_config_list: {}"]})
def models_config(folder):
    for config in read_configs(folder / "models.config"):
        assert isinstance(config.base_path, str)
