"""TensorFlow Serving's REST API, version 1, with health and Prometheus endpoints.

Names and shapes of requests and responses: https://www.tensorflow.org/tfx/serving/api_rest
"""

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import numpy as np
from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import predict_pb2

from kbert.fields import is_text
from kbert.server.credentials import ApiKeys
from kbert.server.demo import Demo
from kbert.server.embeddings import Embeddings
from kbert.server.errors import HTTP_STATUS, NO_KEY, RequestError, invalid
from kbert.server.gate import Call, Gate
from kbert.server.http_server import as_json, host_check_middleware
from kbert.server.metrics import Metrics
from kbert.server.servable import Signature
from kbert.server.service import Service
from kbert.server.tensors import check_examples, example_of_json, from_json, to_json
from kbert.settings.serving import ServeConfig

_DEMO = {"/": "GET", "/demo/models": "GET", "/demo/attention": "POST"}  # with --demo
_WITHOUT_KEY = ("/healthz", "/readyz")
_NUMBER_BYTES = 8  # in a response, roughly
_IN_PYTHON = {  # json.loads would call `int` and `float` itself, without letting other threads run
    "parse_int": lambda text: int(text),
    "parse_float": lambda text: float(text),
    "object_pairs_hook": lambda pairs: dict(pairs),
}
_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(?P<what>/metadata|:predict|:classify|:regress)?"
)


class RestApi:
    """The REST API."""

    def __init__(
        self, config: ServeConfig, service: Service, metrics: Metrics, keys: ApiKeys | None = None
    ) -> None:
        self._service, self._metrics, self._config, self._keys = service, metrics, config, keys
        self._seconds = config.rest_api_timeout_in_ms / 1000
        self._gate = Gate(metrics, config.max_concurrent_requests)
        self._demo = Demo(service) if config.demo else None
        self._embeddings = Embeddings(service)

    def app(self, others: Iterable[web.RouteDef] = ()) -> web.Application:
        """Returns an application with the API and other routes."""
        app = web.Application(
            middlewares=[host_check_middleware(self._config.host), self._authorized]
        )
        app.router.add_routes(others)
        app.router.add_route("*", "/{path:.*}", self._counted)
        return app

    @web.middleware
    async def _authorized(self, request, handler):
        is_free = not self._keys or request.path in _WITHOUT_KEY
        if is_free or self._keys.accept(request.headers):
            return await handler(request)
        code = "UNAUTHENTICATED"
        self._metrics.answered("", "rest_unknown", code, 0.0, request.remote)
        response = as_json(HTTP_STATUS[code], {"error": NO_KEY})
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _counted(self, request):
        """Answers a request or returns {"error": ...}, and counts it."""
        call = Call("rest_unknown", peer=request.remote)
        try:
            with self._gate.passing(call):
                return await self._in_time(self._routed(request, call))
        except RequestError as error:
            return as_json(error.status, {"error": str(error)})

    async def _in_time(self, answer):
        try:
            async with asyncio.timeout(self._seconds):
                return await answer()
        except TimeoutError:
            reason = f"not answered within {self._seconds:g} seconds."
            raise RequestError("DEADLINE_EXCEEDED", reason) from None

    def _routed(self, request: web.Request, call: Call) -> Callable[[], Awaitable[web.Response]]:
        """Returns the handler of a request; writes its model and operation into `call`."""
        if self._demo and _DEMO.get(request.path) == request.method:
            call.method = "rest_demo"
            return functools.partial(self._answer_demo, request)
        if (request.method, request.path) == ("POST", "/v1/embeddings"):
            call.method = "rest_embeddings"
            return functools.partial(self._answer_embeddings, request, call)
        match = _PATH.fullmatch(request.path)
        is_post = bool(match) and (match["what"] or "").startswith(":")
        if not match or request.method != ("POST" if is_post else "GET"):
            raise RequestError(
                "INVALID_ARGUMENT" if request.path.startswith("/v1/") else "NOT_FOUND",
                f"{request.method} {request.path[:200]} is not served: GET "
                f"/v1/models/NAME[/metadata], POST /v1/models/NAME:(predict|classify|regress), "
                f"POST /v1/embeddings.",
            )
        what = (match["what"] or "status").strip(":/")
        call.model, call.method = match["name"], f"rest_{what}"
        return functools.partial(self._answer, request, _spec(match), what)

    async def _answer_embeddings(self, request, call):
        values, _ = await self._values(request)
        call.model = str(values.get("model"))
        result = await self._embeddings.embed(values)
        return web.Response(body=result, content_type="application/json")

    async def _answer_demo(self, request):
        if request.path == "/":
            return web.Response(body=self._demo.page, headers=self._demo.headers)
        if request.path == "/demo/models":
            return as_json(200, self._demo.served())
        values, _ = await self._values(request)
        result = await self._demo.attention(values)
        return web.Response(body=result, content_type="application/json")

    async def _answer(self, request, spec, what):
        if what == "status":
            return _message(self._service.status(spec))
        if what == "metadata":
            return _message(self._service.metadata(spec))
        values, size = await self._values(request)
        spec.signature_name = values.get("signature_name", "")
        _, servable, signature = self._service.find(spec)
        if what == "predict":
            write = _rows_text if "instances" in values else _columns_text
            inputs = await self._service.in_turn(size, _inputs, signature, values)
            del values
            outputs = await self._service.predict(servable, signature, inputs)
            size = _NUMBER_BYTES * sum(array.size for array in outputs.values())
            text = await self._service.in_turn(size, write, outputs)
            return web.Response(body=text, content_type="application/json")
        most = self._service.most_examples, self._config.max_request_bytes
        examples = await self._service.in_turn(size, _examples, values, *most)
        del values
        if what == "classify":
            outputs = await self._service.classify(servable, signature, examples)
        else:
            outputs = [await self._service.regress(servable, signature, examples)]
        size = _NUMBER_BYTES * sum(array.size for array in outputs)
        text = await self._service.in_turn(size, _results_text, *outputs)
        return web.Response(body=text, content_type="application/json")

    async def _values(self, request: web.Request) -> tuple[dict[str, Any], int]:
        """Returns the JSON object in a body, and the size of the body in bytes."""
        body, most = await self._body(request), 2 * self._service.most_examples
        if body.count(b"[") > most:  # json.loads would not let other threads run for 0.1 s
            raise invalid(f"the body has more than {most:,} '['; send fewer lists per request.")
        return await self._service.in_turn(len(body), _parsed, body), len(body)

    async def _body(self, request: web.Request) -> bytes:
        """Reads the body; aiohttp's own `read` would keep it in memory during the request."""
        parts, size, most = [], 0, self._config.max_request_bytes
        try:
            async for part in request.content.iter_chunked(1 << 16):
                size += len(part)
                if size > most:
                    reason = f"the request is larger than {most:,} bytes."
                    raise RequestError("INVALID_ARGUMENT", reason, 413)
                parts.append(part)
        except (web.RequestPayloadError, ConnectionError) as error:
            raise invalid(f"the body cannot be read: {type(error).__name__}.") from None
        return b"".join(parts)


def _spec(match):
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = match["name"]
    if match["version"]:
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = match["label"]
    return spec


def _parsed(body: bytes) -> dict[str, Any]:
    """Parses a body as a JSON object."""
    try:
        values = json.loads(body, **_IN_PYTHON)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise invalid("the body is not a JSON object.")
    if not is_text(values.get("signature_name", "")):
        raise invalid("signature_name must be a string of Unicode characters.")
    return values


def _is_bytes(value):
    return isinstance(value, dict) and set(value) == {"b64"}


def _inputs(signature, values):
    """Converts 'inputs' or 'instances', with names or of an only input, to arrays by name."""
    if ("instances" in values) == ("inputs" in values):
        raise invalid("a request must have either 'instances' or 'inputs'.")
    if "inputs" in values:
        return _columns(signature, values["inputs"])
    instances = values["instances"]
    if not isinstance(instances, list) or not instances:
        raise invalid("'instances' must be a list of at least one row.")
    if not all(isinstance(row, dict) and not _is_bytes(row) for row in instances):
        return _columns(signature, instances)
    names = set(instances[0])
    if any(set(row) != names for row in instances):
        raise invalid("all 'instances' must have the same inputs.")
    return _columns(signature, {name: [row[name] for row in instances] for name in names})


def _columns(signature: Signature, inputs: object) -> dict[str, np.ndarray]:
    """Converts 'inputs' (an object, or the value of the only input) to a dict of arrays."""
    if not isinstance(inputs, dict) or _is_bytes(inputs):
        if len(signature.inputs) != 1:
            names = ", ".join(sorted(signature.inputs))
            raise invalid(
                f"signature {signature.name} takes several inputs; give each by name: {names}."
            )
        inputs = {name: inputs for name in signature.inputs}
    arrays = {}
    for name, value in inputs.items():
        if name not in signature.inputs:
            raise invalid(
                f"signature {signature.name} has no input {name[:100]!r}; it takes "
                f"{', '.join(sorted(signature.inputs))}."
            )
        spec = signature.inputs[name]
        arrays[name] = from_json(name, value, spec.dtype, spec.shape.rank)
    return arrays


def _examples(values: dict[str, Any], most: int, most_bytes: int) -> np.ndarray:
    """Converts the body of a Classify or Regress request to (B,) serialized tf.Examples."""
    examples, context = values.get("examples"), values.get("context", {})
    if not isinstance(examples, list):
        raise invalid("'examples' must be a list of at least one example.")
    if not isinstance(context, dict):
        raise invalid("'context' must be an object of features.")
    check_examples(len(examples), most, example_of_json(context), most_bytes)
    rows = [{**context, **row} if isinstance(row, dict) else row for row in examples]
    return np.array([example_of_json(row) for row in rows], object)


def _columns_text(outputs):
    """Serializes a dict of arrays as {"outputs": ...}; a single output without its name.

    It serializes row by row, so that other threads can run in between.
    """
    texts = [
        f"[{', '.join(_row_texts(name, x))}]" if x.ndim else json.dumps(to_json(name, x))
        for name, x in outputs.items()
    ]
    return f'{{"outputs": {_json_object(map(json.dumps, outputs), texts)}}}'.encode()


def _row_texts(name, array):
    return [json.dumps(to_json(name, array[i : i + 1])[0]) for i in range(len(array))]


def _rows_text(outputs):
    """Serializes a dict of arrays as {"predictions": [...]}; see `_columns_text`."""
    if len({len(array) if array.ndim else -1 for array in outputs.values()} | {-1}) != 2:
        raise invalid(
            "the outputs have different numbers of rows; use 'inputs' instead of 'instances'."
        )
    names = [json.dumps(name) for name in outputs]
    columns = [_row_texts(name, array) for name, array in outputs.items()]
    rows = [_json_object(names, row) for row in zip(*columns, strict=True)]
    return f'{{"predictions": [{", ".join(rows)}]}}'.encode()


def _results_text(*columns):
    """Serializes classes and scores, or the values of a regression, as {"results": [...]}."""
    rows = [[to_json("", x[i : i + 1])[0] for x in columns] for i in range(len(columns[0]))]
    texts = [json.dumps(list(zip(*row, strict=True)) if len(row) > 1 else row[0]) for row in rows]
    return f'{{"results": [{", ".join(texts)}]}}'.encode()


def _json_object(names: Iterable[str], texts: Sequence[str]) -> str:
    """Combines JSON texts to an object; a single one is returned without its name."""
    pairs = [f"{name}: {text}" for name, text in zip(names, texts, strict=True)]
    return texts[0] if len(pairs) == 1 else f"{{{', '.join(pairs)}}}"


def _message(message):
    """Serializes a message as TensorFlow Serving does, without the "@type" of metadata."""
    result = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for value in result.get("metadata", {}).values():
        del value["@type"]
    return as_json(200, result)
