"""TensorFlow Serving's gRPC API: PredictionService, ModelService and gRPC's health service."""

import asyncio
import contextlib

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from kbert.server.credentials import ApiKeys, Certificates
from kbert.server.errors import NO_KEY, RequestError, invalid
from kbert.server.gate import Call, Gate
from kbert.server.http_server import HANDSHAKE_S, address_of
from kbert.server.metrics import Metrics
from kbert.server.service import Service
from kbert.server.tensors import examples_of_input, to_proto
from kbert.settings.serving import ServeConfig

_METHODS = {"tensorflow/serving/classify": "classify", "tensorflow/serving/regress": "regress"}


class _Answering(grpc.aio.ServerInterceptor):
    """Checks keys, limits open requests, converts errors to gRPC status codes, counts requests."""

    def __init__(self, gate, keys):
        self._gate, self._keys = gate, keys

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        if not handler_call_details.method.startswith("/tensorflow.serving.") or not handler:
            return handler
        name = handler_call_details.method.rpartition("/")[2]

        def decoded(message):
            try:
                return handler.request_deserializer(message)
            except DecodeError:  # gRPC would report an internal error
                return None

        async def method(request, context):
            return await self._counted(name, handler.unary_unary, request, context)

        return grpc.unary_unary_rpc_method_handler(method, decoded, handler.response_serializer)

    async def _counted(self, name, method, request, context):
        try:
            with self._gate.passing(Call(f"grpc_{name}", _model_name(request), context.peer())):
                if self._keys and not self._keys.accept(dict(context.invocation_metadata())):
                    raise RequestError("UNAUTHENTICATED", NO_KEY)
                if request is None:
                    raise invalid("the request is not a valid message of this method.")
                return await method(request)
        except RequestError as error:
            await context.abort(grpc.StatusCode[error.code], str(error))


def _model_name(request):
    tasks = getattr(request, "tasks", None)
    spec = getattr(request, "model_spec", None) or (tasks[0].model_spec if tasks else None)
    return spec.name if spec else ""


class Servicer:
    """All methods of PredictionService and ModelService, called by `_Answering`."""

    def __init__(self, service: Service, allow_reload: bool) -> None:
        self.service: Service = service
        self._allow_reload = allow_reload  # clients may replace the configuration

    async def Predict(self, request: "predict_pb2.PredictRequest") -> "predict_pb2.PredictResponse":
        """Computes a signature on tensors."""
        spec, output_names = request.model_spec, list(request.output_filter)
        number, servable, signature = self.service.find(spec)
        inputs = await self.service.in_turn(
            request.ByteSize(),
            *(servable.read, signature, request.inputs, self.service.max_request_bytes),
        )
        outputs = await self.service.predict(servable, signature, inputs, output_names)
        answer = predict_pb2.PredictResponse(model_spec=self.service.spec_of(spec, number))
        for name, array in outputs.items():
            answer.outputs[name].CopyFrom(to_proto(array))
        return answer

    async def Classify(
        self, request: "classification_pb2.ClassificationRequest"
    ) -> "classification_pb2.ClassificationResponse":
        """Classifies tf.Examples."""
        return await self._result("classify", request, classification_pb2.ClassificationResponse())

    async def Regress(
        self, request: "regression_pb2.RegressionRequest"
    ) -> "regression_pb2.RegressionResponse":
        """Computes a score for each tf.Example."""
        return await self._result("regress", request, regression_pb2.RegressionResponse())

    async def _result(self, kind, request, answer):
        number, servable, signature = self.service.find(request.model_spec)
        examples = await self._examples(request)
        result = await getattr(self.service, kind)(servable, signature, examples)
        answer.result.CopyFrom(result)
        answer.model_spec.CopyFrom(self.service.spec_of(request.model_spec, number))
        return answer

    async def _examples(self, request):
        service = self.service
        most = service.most_examples, service.max_request_bytes
        return await service.in_turn(request.ByteSize(), examples_of_input, request.input, *most)

    async def MultiInference(
        self, request: "inference_pb2.MultiInferenceRequest"
    ) -> "inference_pb2.MultiInferenceResponse":
        """Classifies and regresses the same tf.Examples with several signatures."""
        examples = await self._examples(request)
        if not request.tasks:
            raise invalid("the request has no tasks.")
        specs = [task.model_spec for task in request.tasks]
        if len({spec.name for spec in specs}) > 1:
            raise invalid("all tasks must use the same model.")
        if len({spec.signature_name for spec in specs}) < len(specs):
            raise invalid("each task must use a different signature.")
        number, servable, _ = self.service.find(specs[0])
        answer = inference_pb2.MultiInferenceResponse()
        for task in request.tasks:
            if task.method_name not in _METHODS:
                raise RequestError(
                    "UNIMPLEMENTED",
                    f"method_name must be {' or '.join(_METHODS)}; got {task.method_name!r}.",
                )
            kind = _METHODS[task.method_name]
            signature = servable.signature(task.model_spec.signature_name)
            outcome = await getattr(self.service, kind)(servable, signature, examples)
            result = answer.results.add()
            result.model_spec.CopyFrom(self.service.spec_of(task.model_spec, number))
            field = "classification_result" if kind == "classify" else "regression_result"
            getattr(result, field).CopyFrom(outcome)
        return answer

    async def GetModelMetadata(
        self, request: "get_model_metadata_pb2.GetModelMetadataRequest"
    ) -> "get_model_metadata_pb2.GetModelMetadataResponse":
        """Returns the signatures of a model."""
        return self.service.metadata(request.model_spec, request.metadata_field)

    async def GetModelStatus(
        self, request: "get_model_status_pb2.GetModelStatusRequest"
    ) -> "get_model_status_pb2.GetModelStatusResponse":
        """Returns the state of each version of a model."""
        return self.service.status(request.model_spec)

    async def HandleReloadConfigRequest(
        self, request: "model_management_pb2.ReloadConfigRequest"
    ) -> "model_management_pb2.ReloadConfigResponse":
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

        modules = health_pb2, model_service_pb2, prediction_service_pb2
        services = [
            service.full_name
            for module in modules
            for service in module.DESCRIPTOR.services_by_name.values()
        ]
        reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server)


class GrpcServer:
    """The gRPC server. port: once it is bound."""

    port: int

    def __init__(
        self, config: ServeConfig, service: Service, metrics: Metrics, keys: ApiKeys | None = None
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=[_Answering(Gate(metrics, config.max_concurrent_requests), keys)],
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
        servicer = Servicer(service, config.reload_allowed)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, self._server)
        if not keys:  # `_Answering` checks only the keys of TensorFlow Serving's methods
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
