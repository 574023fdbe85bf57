"""What both ports do with requests that take their time; a service that waits stands for models."""

import asyncio
import contextlib
import io
import os
import socket
import types

import aiohttp
import event_loop
import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import free_port
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

import kbert.serve
import kbert.server.main
from kbert.server.grpc_api import GrpcServer
from kbert.server.http_server import HttpServer
from kbert.server.monitoring import Monitoring
from kbert.server.rest_api import RestApi
from kbert.settings.serving import ServeConfig


class Service:
    """Answers when `go_on` is set, with `size` zeros. ends: "done" or "given up" for each."""

    most_tokens, most_examples, max_request_bytes = 20, 10, 4 << 20

    def __init__(self, size=3):
        self.size, self.begun, self.ends, self.go_on = size, 0, [], asyncio.Event()
        self.models = types.SimpleNamespace(configure=self._wait, available=dict)

    async def _wait(self, *_):
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ends.append("given up")
            raise
        self.ends.append("done")

    async def in_turn(self, size, function, *arguments):
        return function(*arguments)

    def find(self, spec):
        signature = types.SimpleNamespace(
            name="s", inputs={"x": tf.TensorSpec([None], tf.float32, "x")}
        )
        return 1, types.SimpleNamespace(read=lambda *_: {}), signature

    def spec_of(self, spec, number):
        return None

    async def predict(self, servable, signature, inputs, wanted=()):
        await self._wait()
        return {"x": np.zeros(self.size, np.float32)}


class Metrics:
    def __init__(self):
        self.counted = []

    def answered(self, model, method, code, seconds, peer=None):
        self.counted.append((method, code))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def finish(coroutine):
    event_loop.run(asyncio.wait_for(coroutine, 120))


class Doors:
    """Both servers. settings: of ServeConfig."""

    def __init__(self, service, **settings):
        config = ServeConfig(model_base_path="/nothing", **settings)
        self.service, self.metrics, self.host = service, Metrics(), config.host
        self.grpc = GrpcServer(config, service, self.metrics)
        self.monitoring = Monitoring(service.models, self.metrics, config.host)
        api = RestApi(config, service, self.metrics)
        self.rest = HttpServer(api.app(self.monitoring.routes()), config)

    async def start(self):
        for server, host in ((self.grpc, "127.0.0.1"), (self.rest, self.host)):
            await server.bind(host, free_port())
            await server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc.port}")
        self.session = aiohttp.ClientSession()

    def predict(self, channel=None, timeout=120):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel or self.channel)
        return stub.Predict(predict_pb2.PredictRequest(), timeout=timeout)

    async def post(self, path="/v1/models/m:predict", method="POST", **headers):
        """(status, JSON, headers) of an answer by REST."""
        address = f"http://127.0.0.1:{self.rest.port}{path}"
        headers = {name: value for name, value in headers.items() if value is not None}
        json = {"inputs": [1.0]} if method == "POST" else None
        async with self.session.request(method, address, json=json, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers


@contextlib.asynccontextmanager
async def doors(*arguments, **settings):
    found = Doors(*arguments, **settings)
    await found.start()
    try:
        yield found
    finally:
        found.service.go_on.set()
        await found.channel.close()
        await found.session.close()
        await asyncio.gather(found.grpc.stop(), found.rest.stop())


def code_of(error):
    return error.value.code().name


def test_rest_answers_in_time_or_says_that_it_does_not():
    async def run():
        async with doors(Service(), rest_api_timeout_in_ms=50) as asked:
            status, said, _ = await asked.post()
            assert status == 504 and said == {"error": "not answered within 0.05 seconds."}
            assert asked.metrics.counted == [("rest_predict", "DEADLINE_EXCEEDED")]
            assert asked.service.ends == ["given up"]

    finish(run())


def test_what_clients_give_up_is_cancelled():
    async def run():
        async with doors(Service()) as asked:
            with pytest.raises(grpc.RpcError) as error:
                await asked.predict(timeout=0.5)
            assert code_of(error) == "DEADLINE_EXCEEDED"
            await until(lambda: len(asked.service.ends) == asked.service.begun)
            asked.metrics.counted.clear()
            for method, ask in (("grpc_Predict", asked.predict), ("rest_predict", asked.post)):
                begun = asked.service.begun
                task = asyncio.ensure_future(ask())
                await until(lambda begun=begun: asked.service.begun > begun)
                task.cancel()
                await until(lambda method=method: (method, "CANCELLED") in asked.metrics.counted)
            assert set(asked.service.ends) == {"given up"}

    finish(run())


def test_a_reload_goes_on_when_the_client_does_not_wait():
    async def run():
        async with doors(Service()) as asked:
            request = model_management_pb2.ReloadConfigRequest()
            request.config.model_config_list.config.add(name="bert", base_path="/nothing")
            stub = model_service_pb2_grpc.ModelServiceStub(asked.channel)
            call = stub.HandleReloadConfigRequest(request)
            await until(lambda: asked.service.begun or call.done())
            call.cancel()
            await until(lambda: asked.metrics.counted)
            asked.service.go_on.set()
            await until(lambda: asked.service.ends)
            assert asked.service.ends == ["done"]
            assert asked.metrics.counted == [("grpc_HandleReloadConfigRequest", "CANCELLED")]

    finish(run())


def test_more_requests_than_are_allowed_are_refused():
    async def run():
        async with doors(Service(), max_concurrent_requests=3) as asked:
            tasks = [asyncio.ensure_future(ask()) for ask in (asked.predict, asked.post) * 3]
            await until(lambda: asked.service.begun == 6)
            with pytest.raises(grpc.RpcError, match="3 requests are open already") as error:
                await asked.predict()
            assert code_of(error) == "RESOURCE_EXHAUSTED"
            status, said, _ = await asked.post()
            assert status == 503 and said == {"error": "3 requests are open already."}
            asked.service.go_on.set()
            found = await asyncio.gather(*tasks)
            assert [one[0] for one in found[1::2]] == [200] * 3

    finish(run())


@pytest.mark.parametrize("drain_seconds", [0.2, 300])
def test_the_end_waits_for_requests_and_not_for_ever(drain_seconds):
    async def run():
        async with doors(Service(), drain_seconds=drain_seconds) as asked:
            by_grpc = asyncio.ensure_future(asked.predict())
            by_rest = asyncio.ensure_future(asked.post())
            watch = health_pb2_grpc.HealthStub(asked.channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == 1
            await until(lambda: asked.service.begun == 2)
            stopping = asyncio.gather(asked.grpc.stop(), asked.rest.stop())
            assert (await watch.read()).status == 2
            assert await watch.read() is grpc.aio.EOF  # it is over with what it watches
            if drain_seconds < 1:
                await asyncio.wait_for(stopping, 60)
                assert asked.service.ends == ["given up"] * 2
                with pytest.raises(grpc.RpcError):
                    await by_grpc
                with pytest.raises(aiohttp.ClientError):
                    await by_rest
            else:
                await asyncio.sleep(0.5)
                assert not stopping.done() and not asked.service.ends
                asked.service.go_on.set()
                await asyncio.wait_for(stopping, 60)
                assert len((await by_grpc).outputs["x"].float_val) == 3
                assert (await by_rest)[0] == 200

    finish(run())


def test_the_end_waits_for_answers_to_leave():
    """To a client whose connection takes nothing for a second."""

    async def run():
        loop, open_wide = asyncio.get_running_loop(), asyncio.Event()

        async def pass_on(source, target, gate=None):
            # Sockets, because asyncio's streams drop received data when a write fails.
            with contextlib.suppress(OSError):
                while data := await loop.sock_recv(source, 1 << 16):
                    if gate:
                        await gate.wait()
                    await loop.sock_sendall(target, data)
                target.shutdown(socket.SHUT_WR)

        async def connect(listener, port):
            client, _ = await loop.sock_accept(listener)
            server = socket.create_connection(("127.0.0.1", port))
            with client, server:
                client.setblocking(False)
                server.setblocking(False)
                upwards = asyncio.ensure_future(pass_on(client, server))
                await pass_on(server, client, open_wide)
                upwards.cancel()

        # The answer is larger than what a connection buffers.
        async with doors(Service(size=4 << 20), drain_seconds=300) as asked:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.setblocking(False)
                proxy = asyncio.ensure_future(connect(listener, asked.grpc.port))
                options = [("grpc.max_receive_message_length", -1)]
                address = "{}:{}".format(*listener.getsockname())
                async with grpc.aio.insecure_channel(address, options) as channel:
                    open_wide.set()
                    asked.service.go_on.set()
                    await asked.predict(channel)
                    asked.metrics.counted.clear()
                    open_wide.clear()
                    task = asyncio.ensure_future(asked.predict(channel))
                    await until(lambda: asked.metrics.counted)  # it is computed, and being sent
                    stopping = asyncio.ensure_future(asked.grpc.stop())
                    await asyncio.sleep(1)
                    assert not task.done() and not stopping.done()
                    open_wide.set()
                    assert len((await task).outputs["x"].float_val) == 4 << 20
                    await asyncio.wait_for(stopping, 60)
                await proxy

    finish(run())


OWN = ("localhost", "LOCALHOST:8501", "127.0.0.1:1", "[::1]:8501", None)
FOREIGN = ("evil.example", "evil.example:8501", "localhost.evil.example", "192.168.0.1", "[", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_pages_of_other_sites_are_refused(host):
    """They may give their names the address 127.0.0.1 and ask through a browser."""

    async def run():
        async with doors(Service(), host=host) as asked:
            asked.service.go_on.set()
            for name in OWN:
                status, said, headers = await asked.post(Host=name)
                assert status == 200 and said == {"outputs": [0.0] * 3}, name
                assert headers["X-Content-Type-Options"] == "nosniff"
                origin = name and f"http://{name}"
                assert (await asked.post(Origin=origin))[0] == 200
            for name in FOREIGN:
                for method, path in (("POST", "/v1/models/m:predict"), ("GET", "/healthz")):
                    status, said, headers = await asked.post(path, method, Host=name)
                    assert status == 403 and "is not this machine: use 127.0.0.1" in said["error"]
                    assert headers["X-Content-Type-Options"] == "nosniff"
            for origin in ("http://evil.example", "https://localhost.evil.example:8501", "null"):
                status, said, _ = await asked.post(Origin=origin)
                assert status == 403 and f"Origin '{origin}' is not" in said["error"]
                assert "\n" not in said["error"]
                assert (await asked.post("/healthz", "GET", Origin=origin))[0] == 200

    finish(run())


def test_a_server_for_other_machines_has_any_name():
    async def run():
        async with doors(Service(), host="0.0.0.0") as asked:
            asked.service.go_on.set()
            headers = {"Host": "bert.example:8501", "Origin": "https://bert.example"}
            assert (await asked.post(**headers))[0] == 200

    finish(run())


def test_the_program_flushes_its_lines(monkeypatch):
    """A supervisor that waits for "ready" reads from a pipe or a file."""
    flushed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(flushed)))
    monkeypatch.setattr(os, "_exit", lambda status: None)
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "2")  # `main` sets it otherwise
    monkeypatch.setattr(kbert.serve, "start_log", lambda: None)

    async def serve(config, report):
        report("ready")

    monkeypatch.setattr(kbert.server.main, "serve", serve)
    kbert.serve.main(ServeConfig(model_base_path="models"))
    assert flushed.getvalue() == b"ready\n"
