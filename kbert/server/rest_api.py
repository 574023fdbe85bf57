"""TensorFlow Serving's REST API, version 1, with health and Prometheus endpoints.

Names and shapes of requests and responses: https://www.tensorflow.org/tfx/serving/api_rest
"""

import asyncio
import functools
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import predict_pb2

from kbert.server.demo import Demo
from kbert.server.errors import HTTP_STATUS, RequestError, invalid
from kbert.server.host_check import guard
from kbert.server.tensors import check_examples, example_of_json, from_json, to_json

if TYPE_CHECKING:
    import ssl
    from typing import Any

    from kbert.server.metrics import Metrics
    from kbert.server.servable import Signature
    from kbert.server.service import Service
    from kbert.settings.serving import ServeConfig

log: logging.Logger = logging.getLogger("kbert.serve")
_DEMO = {"/": "GET", "/demo/models": "GET", "/demo/attention": "POST"}  # with --demo
_MANY = 1 << 14  # responses with more numbers and texts are serialized in a thread
_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(?P<what>/metadata|:predict|:classify|:regress)?"
)


class RestServer:
    """The REST server. config: ServeConfig. service: Service. metrics: Metrics."""

    def __init__(self, config: "ServeConfig", service: "Service", metrics: "Metrics") -> None:
        self._service, self._metrics, self._config = service, metrics, config
        self._seconds = config.rest_api_timeout_in_ms / 1000
        self._open = 0
        self._demo = Demo(service) if config.demo else None
        app = web.Application(middlewares=[guard(config.host)])
        app.on_response_prepare.append(_not_sniffed)
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/monitoring/prometheus/metrics", self._prometheus)
        app.router.add_route("*", "/{path:.*}", self._counted)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,  # do not compute requests of disconnected clients
            shutdown_timeout=config.drain_seconds,
        )
        # aiohttp logs a stack trace for each request that is not HTTP.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
        self.port: int | None = None

    async def start(self, host: str, port: int, context: "ssl.SSLContext | None") -> None:
        """Starts the server. context: ssl.SSLContext, or None without TLS.

        Raises:
            OSError: the port is in use.
        """
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stops accepting requests, and waits for the open ones."""
        await self._runner.cleanup()

    async def _alive(self, request):
        return _said(200, {"status": "alive"})

    async def _ready(self, request):
        ready = all(self._service.models.available().values())
        return _said(200 if ready else 503, {"status": "ready" if ready else "not ready"})

    async def _prometheus(self, request):
        return web.Response(body=self._metrics.text(), content_type="text/plain")

    async def _counted(self, request):
        """Answers a request or returns {"error": ...}, and counts it."""
        begin, code, name, what = time.perf_counter(), "OK", "", "unknown"
        self._open += 1
        try:
            name, what, answer = self._routed(request)
            if self._open > self._config.max_concurrent_requests:
                raise RequestError(
                    "RESOURCE_EXHAUSTED",
                    f"{self._config.max_concurrent_requests} requests are open already.",
                )
            async with asyncio.timeout(self._seconds):
                return await answer()
        except RequestError as error:
            code = error.code
            return _said(HTTP_STATUS[code], {"error": str(error)})
        except TimeoutError:
            code = "DEADLINE_EXCEEDED"
            return _said(504, {"error": f"not answered within {self._seconds:g} seconds."})
        except web.HTTPRequestEntityTooLarge:
            code, most = "INVALID_ARGUMENT", self._config.max_request_bytes
            return _said(413, {"error": f"the request is larger than {most:,} bytes."})
        except UnicodeEncodeError:  # an unpaired surrogate in a name
            code = "INVALID_ARGUMENT"
            return _said(400, {"error": "a name in the request is not Unicode."})
        except (web.RequestPayloadError, ConnectionError) as error:
            code = "INVALID_ARGUMENT"
            return _said(400, {"error": f"the body cannot be read: {type(error).__name__}."})
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception:
            code = "INTERNAL"
            log.exception("a request of %s failed", what)
            return _said(500, {"error": "the server failed; see its log."})
        finally:
            self._open -= 1
            self._metrics.answered(name, f"rest_{what}", code, time.perf_counter() - begin)

    def _routed(
        self, request: web.Request
    ) -> tuple[str, str, Callable[[], Awaitable[web.Response]]]:
        """Returns (model, operation, handler) of a request."""
        if self._demo and _DEMO.get(request.path) == request.method:
            return "", "demo", functools.partial(self._answer_demo, request)
        match = _PATH.fullmatch(request.path)
        is_post = bool(match) and (match["what"] or "").startswith(":")
        if not match or request.method != ("POST" if is_post else "GET"):
            raise RequestError(
                "INVALID_ARGUMENT" if request.path.startswith("/v1/") else "NOT_FOUND",
                f"{request.method} {request.path[:200]} is not served: GET "
                f"/v1/models/NAME[/metadata], POST /v1/models/NAME:(predict|classify|regress).",
            )
        what = (match["what"] or "status").strip(":/")
        return match["name"], what, functools.partial(self._answer, request, _spec(match), what)

    async def _answer_demo(self, request):
        if request.path == "/":
            return web.Response(body=self._demo.page, headers=self._demo.headers)
        if request.path == "/demo/models":
            return _said(200, self._demo.served())
        result = await self._demo.attention(_parsed(await self._body(request)))
        return web.Response(body=result, content_type="application/json")

    async def _answer(self, request, spec, what):
        if what == "status":
            return _message(self._service.status(spec))
        if what == "metadata":
            return _message(self._service.metadata(spec))
        values = _parsed(await self._body(request))
        spec.signature_name = values.get("signature_name", "")
        _, servable, signature = self._service.find(spec)
        if what == "predict":
            write = _rows_text if "instances" in values else _columns_text
            inputs = _inputs(signature, values)
            del values
            outputs = await self._service.predict(servable, signature, inputs)
            large = sum(array.size for array in outputs.values()) > _MANY
            text = await asyncio.to_thread(write, outputs) if large else write(outputs)
            return web.Response(body=text, content_type="application/json")
        examples = _examples(values, self._service.most_examples)
        del values
        outputs = await getattr(self._service, what)(servable, signature, examples)
        if what == "classify":
            rows = [[[c.label, c.score] for c in one.classes] for one in outputs.classifications]
        else:
            rows = [one.value for one in outputs.regressions]
        return _said(200, {"results": rows})

    async def _body(self, request: web.Request) -> bytes:
        """Reads the body; aiohttp's own `read` would keep it in memory during the request."""
        parts, size, most = [], 0, self._config.max_request_bytes
        async for part in request.content.iter_chunked(1 << 16):
            size += len(part)
            if size > most:
                raise web.HTTPRequestEntityTooLarge(most, size)
            parts.append(part)
        return b"".join(parts)


async def _not_sniffed(request, response):
    response.headers["X-Content-Type-Options"] = "nosniff"


def _spec(match):
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = match["name"]
    if match["version"]:
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = match["label"]
    return spec


def _parsed(body: bytes) -> "dict[str, Any]":
    """Parses a body as a JSON object."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise invalid("the body is not a JSON object.")
    if not isinstance(values.get("signature_name", ""), str):
        raise invalid("signature_name must be a string.")
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


def _columns(signature: "Signature", inputs: object) -> dict[str, np.ndarray]:
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


def _examples(values: "dict[str, Any]", most: int) -> np.ndarray:
    """Converts the body of a Classify or Regress request to (B,) serialized tf.Examples."""
    examples, context = values.get("examples"), values.get("context", {})
    if not isinstance(examples, list):
        raise invalid("'examples' must be a list of at least one example.")
    if not isinstance(context, dict):
        raise invalid("'context' must be an object of features.")
    check_examples(len(examples), most, example_of_json(context))
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
    return f'{{"outputs": {_object_text(map(json.dumps, outputs), texts)}}}'.encode()


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
    rows = [_object_text(names, row) for row in zip(*columns, strict=True)]
    return f'{{"predictions": [{", ".join(rows)}]}}'.encode()


def _object_text(names: Iterable[str], texts: Sequence[str]) -> str:
    """Combines JSON texts to an object; a single one is returned without its name."""
    pairs = [f"{name}: {text}" for name, text in zip(names, texts, strict=True)]
    return texts[0] if len(pairs) == 1 else f"{{{', '.join(pairs)}}}"


def _said(status, value):
    return web.Response(
        status=status, body=json.dumps(value).encode(), content_type="application/json"
    )


def _message(message):
    """Serializes a message as TensorFlow Serving does, without the "@type" of metadata."""
    result = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for value in result.get("metadata", {}).values():
        del value["@type"]
    return _said(200, result)
