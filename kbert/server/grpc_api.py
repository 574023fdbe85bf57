"""TensorFlow Serving's gRPC API: PredictionService, ModelService and gRPC's health service."""

import asyncio
import contextlib
import functools
from collections.abc import Iterator

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from kbert.server.credentials import ApiKeys, Certificates
from kbert.server.errors import NO_KEY, RequestError, invalid
from kbert.server.gate import Call, Gate
from kbert.server.http_server import HANDSHAKE_S, address_of
from kbert.server.messages import SERVICES, parse_request
from kbert.server.metrics import Metrics
from kbert.server.service import Service
from kbert.server.tensors import examples_of_input, to_proto
from kbert.settings.serving import ServeConfig

_METHODS = {  # of MultiInference -> kind, field of the result
    "tensorflow/serving/classify": ("classify", "classification_result"),
    "tensorflow/serving/regress": ("regress", "regression_result"),
}


class Servicer:
    """All methods of PredictionService and ModelService.

    Each takes a request as in `kbert.server.messages` and its size in bytes.
    """

    def __init__(
        self, service: Service, gate: Gate, keys: ApiKeys | None, allow_reload: bool
    ) -> None:
        self.service: Service = service
        self._gate, self._keys = gate, keys
        self._allow_reload = allow_reload  # clients may replace the configuration

    def handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        """Yields the handlers of the services, which take requests as bytes."""
        for service in SERVICES:
            methods = {
                name: grpc.unary_unary_rpc_method_handler(
                    functools.partial(self.answer, name),
                    response_serializer=lambda message: message.SerializeToString(),
                )
                for name in service.methods_by_name
                if hasattr(self, name)
            }
            yield grpc.method_handlers_generic_handler(service.full_name, methods)

    async def answer(
        self, name: str, data: bytes, context: "grpc.aio.ServicerContext[bytes, Message]"
    ) -> Message:
        """Checks the key, limits open requests, reports errors as status codes, counts requests."""
        call = Call(f"grpc_{name}", peer=context.peer())
        try:
            with self._gate.passing(call):
                if self._keys and not self._keys.accept(dict(context.invocation_metadata())):
                    raise RequestError("UNAUTHENTICATED", NO_KEY)
                arguments = name, data, self.service.most_tokens
                request = await self.service.in_turn(len(data), parse_request, *arguments)
                call.model = _model_name(request)
                return await getattr(self, name)(request, len(data))
        except RequestError as error:
            await context.abort(grpc.StatusCode[error.code], str(error))

    async def Predict(self, request: Message, size: int) -> Message:
        """Computes a signature on tensors."""
        spec, service = request.model_spec, self.service
        number, servable, signature = service.find(spec)
        # With one too many of the tensors, `read` reports the wrong names.
        entries = request.inputs[: len(signature.inputs) + 1]
        protos = {entry.key: entry.value for entry in entries}
        limits = service.max_request_bytes, service.most_tokens
        inputs = await service.in_turn(size, servable.read, signature, protos, *limits)
        outputs = await service.predict(servable, signature, inputs, request.output_filter)
        answer = predict_pb2.PredictResponse(model_spec=service.spec_of(spec, number))
        return await service.in_turn(_nbytes(*outputs.values()), _fill, answer, outputs)

    async def Classify(self, request: Message, size: int) -> Message:
        """Classifies tf.Examples."""
        return await self._of_examples(
            "classify", request, size, classification_pb2.ClassificationResponse
        )

    async def Regress(self, request: Message, size: int) -> Message:
        """Computes a score for each tf.Example."""
        return await self._of_examples("regress", request, size, regression_pb2.RegressionResponse)

    async def _of_examples(self, kind, request, size, answer_class):
        number, servable, signature = self.service.find(request.model_spec)
        examples = await self._examples(request, size)
        result = await self._result(kind, servable, signature, examples)
        model_spec = self.service.spec_of(request.model_spec, number)
        return answer_class(result=result, model_spec=model_spec)

    async def _examples(self, request, size):
        limits = self.service.most_examples, self.service.max_request_bytes
        return await self.service.in_turn(size, examples_of_input, request.input, *limits)

    async def _result(self, kind, servable, signature, examples):
        """Returns a ClassificationResult or a RegressionResult."""
        if kind == "classify":
            arrays, fill = await self.service.classify(servable, signature, examples), _classified
        else:
            arrays, fill = [await self.service.regress(servable, signature, examples)], _regressed
        return await self.service.in_turn(_nbytes(*arrays), fill, *arrays)

    async def MultiInference(self, request: Message, size: int) -> Message:
        """Classifies and regresses the same tf.Examples with several signatures."""
        examples = await self._examples(request, size)
        if not request.tasks:
            raise invalid("the request has no tasks.")
        number, servable, _ = self.service.find(request.tasks[0].model_spec)
        tasks = request.tasks[: len(servable.signatures) + 1]
        if len({task.model_spec.name for task in tasks}) > 1:
            raise invalid("all tasks must use the same model.")
        if len({task.model_spec.signature_name for task in tasks}) < len(tasks):
            raise invalid("each task must use a different signature.")
        answer = inference_pb2.MultiInferenceResponse()
        for task in tasks:
            if task.method_name not in _METHODS:
                raise RequestError(
                    "UNIMPLEMENTED",
                    f"method_name must be {' or '.join(_METHODS)}; got {task.method_name!r}.",
                )
            kind, field = _METHODS[task.method_name]
            signature = servable.signature(task.model_spec.signature_name)
            outcome = await self._result(kind, servable, signature, examples)
            model_spec = self.service.spec_of(task.model_spec, number)
            answer.results.add(model_spec=model_spec, **{field: outcome})
        return answer

    async def GetModelMetadata(self, request: Message, size: int) -> Message:
        """Returns the signatures of a model."""
        return self.service.metadata(request.model_spec, request.metadata_field)

    async def GetModelStatus(self, request: Message, size: int) -> Message:
        """Returns the state of each version of a model."""
        return self.service.status(request.model_spec)

    async def HandleReloadConfigRequest(self, request: Message, size: int) -> Message:
        """Replaces the configuration of the models."""
        if not self._allow_reload:
            raise RequestError("PERMISSION_DENIED", "this server runs without --allow_reload.")
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid("the config has no model_config_list.")
        configs = list(request.config.model_config_list.config)
        # The configuration is applied even if the client disconnects: loading may take longer.
        configuring = asyncio.ensure_future(self.service.models.configure(configs))
        configuring.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieve
        await asyncio.shield(configuring)
        return model_management_pb2.ReloadConfigResponse()


def _model_name(request):
    tasks = getattr(request, "tasks", None)
    spec = getattr(request, "model_spec", None) or (tasks[0].model_spec if tasks else None)
    return spec.name if spec else ""


def _nbytes(*arrays):
    return sum(array.nbytes for array in arrays)


def _fill(answer, outputs):
    for name, array in outputs.items():
        answer.outputs[name].CopyFrom(to_proto(array))
    return answer


def _classified(classes, scores):
    result = classification_pb2.ClassificationResult()
    for labels, row in zip(classes, scores, strict=True):
        one = result.classifications.add()
        for label, score in zip(labels, row.tolist(), strict=True):
            one.classes.add(label=label.decode("utf-8", "replace"), score=score)
    return result


def _regressed(values):
    result = regression_pb2.RegressionResult()
    for value in values.tolist():
        result.regressions.add(value=value)
    return result


class _Health(health.aio.HealthServicer):
    """gRPC's health service; open watches end when the server stops."""

    def __init__(self):
        super().__init__()
        self._watches = set()

    async def Watch(self, request, context):
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
        finally:
            self._watches.remove(watch)
            watch.cancel()
        if not watch.cancelled():
            watch.result()  # re-raises its exception

    def end_watches(self):
        for watch in self._watches:
            watch.cancel()


class _SslConfiguration:
    """Converts certificates to gRPC's configuration, and detects when they change."""

    def __init__(self, certificates):
        self._certificates, self._sent = certificates, None

    def current(self):
        self._sent = key, chain, client_ca = self._certificates.pem()
        return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)

    def changed(self):
        """Returns the configuration if it has changed since the last call, else None."""
        return None if self._certificates.pem() == self._sent else self.current()


def _enable_reflection(server):
    """Lets clients list the services and their messages, if grpcio-reflection is installed."""
    with contextlib.suppress(ImportError):
        from grpc_reflection.v1alpha import reflection

        names = [service.full_name for service in SERVICES]
        names += [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server)


class GrpcServer:
    """The gRPC server. port: once it is bound."""

    port: int

    def __init__(
        self, config: ServeConfig, service: Service, metrics: Metrics, keys: ApiKeys | None = None
    ) -> None:
        self._server = grpc.aio.server(
            # Calls of health.Watch and of reflection stay open as long as a client wants, and are
            # not counted.
            maximum_concurrent_rpcs=2 * config.max_concurrent_requests,
            options=[
                ("grpc.max_receive_message_length", config.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # raise an error if the port is in use
                ("grpc.keepalive_time_ms", 60_000),  # detects lost connections
                ("grpc.keepalive_timeout_ms", HANDSHAKE_S * 1000),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
                ("grpc.max_connection_idle_ms", int(config.idle_timeout_seconds * 1000)),
                ("grpc.max_allowed_incoming_connections", config.max_connections),
            ],
        )
        self._drain_seconds, self._health = config.drain_seconds, _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        gate = Gate(metrics, config.max_concurrent_requests)
        servicer = Servicer(service, gate, keys, config.reload_allowed)
        self._server.add_generic_rpc_handlers(tuple(servicer.handlers()))
        if not keys:  # `Servicer` checks only the keys of TensorFlow Serving's methods
            _enable_reflection(self._server)
        self._reservation: asyncio.Server | None = None

    async def bind(self, host: str, port: int, certificates: Certificates | None = None) -> None:
        """Takes the port, or raises OSError. Connections are accepted after `start`."""
        # gRPC itself would accept connections at once, though it does not answer them.
        self._reservation = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, host, port, start_serving=False
        )
        self._address, self._certificates = address_of(host, port), certificates
        self.port = port

    async def start(self) -> None:
        """Accepts connections; raises RuntimeError if another process has just taken the port."""
        self._reservation.close()
        if self._certificates:
            configuration = _SslConfiguration(self._certificates)
            credentials = grpc.dynamic_ssl_server_credentials(
                configuration.current(), configuration.changed, self._certificates.needs_client
            )
            self._server.add_secure_port(self._address, credentials)
        else:
            self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def retire(self) -> None:
        """Still answers requests, and reports to health checks that the server is about to stop."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Stops accepting requests, and waits for the open ones."""
        if self._reservation:
            self._reservation.close()
        await self.retire()
        ending = asyncio.ensure_future(self._server.stop(self._drain_seconds))
        await asyncio.sleep(0.1)  # lets health watchers receive the new status
        self._health.end_watches()
        await ending  # all responses are sent, or drain_seconds have passed
