"""gRPC reflection: clients list the services of a server without keys."""

import types

import event_loop
import grpc
import pytest
from ports import free_port

from kbert.server.grpc_api import GrpcServer
from kbert.settings.serving import ServeConfig

reflection_pb2 = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")
reflection_pb2_grpc = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2_grpc")


async def ask(keys, **request):
    """The response to one request of reflection."""
    server = GrpcServer(ServeConfig(model_base_path="/nothing"), None, None, keys)
    await server.bind("127.0.0.1", free_port())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=60
            )
            return await call.read()
    finally:
        await server.stop()


def test_the_services_are_listed():
    response = event_loop.run(ask(None, list_services=""))
    assert {service.name for service in response.list_services_response.service} == {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_a_service_is_described():
    name = "tensorflow.serving.PredictionService"
    response = event_loop.run(ask(None, file_containing_symbol=name))
    files = response.file_descriptor_response.file_descriptor_proto
    assert any(b"MultiInference" in file for file in files)


def test_it_is_off_with_keys():
    keys = types.SimpleNamespace(accept=lambda metadata: True)
    with pytest.raises(grpc.RpcError) as caught:
        event_loop.run(ask(keys, list_services=""))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
