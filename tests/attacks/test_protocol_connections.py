"""Connections: half-open, too many, in the last second; keys, certificates, ports and logs."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
import subprocess
import sys

import event_loop
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live import http, read_response, running, send
from ports import free_port
from server_process import needs, predict_request, reload_request
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from kbert.errors import UserError
from kbert.server import input_checks, log
from kbert.server.credentials import ApiKeys
from kbert.settings.serving import ServeConfig

ASK = http("POST", "/v1/models/m:predict", {"inputs": ["a"]})
KEYS = ("0123456789abcdef-first", "0123456789abcdef-second")


@pytest.fixture(scope="module")
def model(exported):
    return {"model_name": "m", "model_base_path": str(exported("embed")[0])}


async def ask_grpc(config, credentials=None, metadata=None):
    address = f"localhost:{config.port}"
    channel = grpc.aio.insecure_channel(address)
    if credentials:
        channel = grpc.aio.secure_channel(address, credentials)
    async with channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            answer = await stub.Predict(
                predict_request("m", {"text": ["a"]}), timeout=20, metadata=metadata
            )
        except grpc.RpcError as error:
            return error.code().name
        return answer.model_spec.version.value


def test_half_open_connections_are_closed(model):
    async def run():
        async with running(**model, idle_timeout_seconds=0.5) as config:
            opened = []
            for data in (b"", b"POST /v1/mod", ASK[:-3], ASK):
                reader, writer = await asyncio.open_connection("127.0.0.1", config.rest_api_port)
                writer.write(data)
                opened.append((reader, writer))
            half_body, whole = opened[2:]
            assert (await read_response(whole[0]))[0] == 200
            for reader, _ in (opened[0], opened[1], whole):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            half_body[1].write(ASK[-3:])  # a request under way is not idle
            assert (await read_response(half_body[0]))[0] == 200
            assert await ask_grpc(config) == 7

    event_loop.run(run())


def test_too_many_connections_are_refused(model):
    async def run():
        async with running(**model, max_connections=3) as config:
            opened = [
                await asyncio.open_connection("127.0.0.1", port)
                for port in [config.rest_api_port] * 3 + [config.port] * 3
            ]
            while True:  # until the server has accepted all
                found = await send(config.rest_api_port, b"")
                if found:
                    break
            status, headers, body = found
            assert status == 503 and headers["retry-after"] == "1"
            assert json.loads(body)["error"].startswith("the server has too many connections")
            assert await ask_grpc(config) in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            for _, writer in opened:
                writer.close()
            while (await send(config.rest_api_port, ASK))[0] == 503:
                await asyncio.sleep(0.05)
            while await ask_grpc(config) != 7:
                await asyncio.sleep(0.05)

    event_loop.run(run())


def test_the_last_second_resets_nobody(model, monkeypatch):
    """Checks fail first; kept connections are to be closed, and new ones are still answered."""

    async def run():
        stop = asyncio.Event()
        monkeypatch.setattr("kbert.server.main._stop_signal", stop.wait)
        async with running(**model, lame_duck_seconds=300) as config:
            kept = await asyncio.open_connection("127.0.0.1", config.rest_api_port)
            kept[1].write(ASK)
            assert "connection" not in (await read_response(kept[0]))[1]
            health = grpc.aio.insecure_channel(f"127.0.0.1:{config.port}")
            watch = health_pb2_grpc.HealthStub(health).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == 1
            stop.set()
            assert (await watch.read()).status == 2
            status, headers, _ = await send(config.rest_api_port, http("GET", "/readyz"))
            assert status == 503 and headers["retry-after"] == "1"
            kept[1].write(ASK)
            status, headers, _ = await read_response(kept[0])
            assert status == 200 and headers["connection"] == "close"
            assert await kept[0].read() == b""
            assert (await send(config.rest_api_port, ASK))[0] == 200
            assert await ask_grpc(config) == 7
            await health.close()

    event_loop.run(run())


def test_a_port_that_is_taken_is_noticed_first(model):
    """Before the models are loaded, which are missing here."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        for name in ("port", "rest_api_port", "monitoring_port"):

            async def run(name=name):
                settings = {"model_name": "m", "model_base_path": "none://bucket", name: taken}
                async with running(**settings):
                    raise AssertionError

            with pytest.raises(UserError, match=rf"--{name}: cannot listen on 127.0.0.1:{taken}"):
                event_loop.run(run())


def test_monitoring_has_a_port_of_its_own_which_answers_first(model, monkeypatch):
    gate, monitoring = asyncio.Event(), free_port()

    async def run():
        from kbert.server import main

        start = main._start

        async def slowly(*arguments):
            assert (await send(monitoring, http("GET", "/healthz")))[0] == 200
            assert (await send(monitoring, http("GET", "/readyz")))[0] == 503
            gate.set()
            await start(*arguments)

        monkeypatch.setattr(main, "_start", slowly)
        async with running(**model, monitoring_port=monitoring) as config:
            assert gate.is_set()
            assert (await send(monitoring, http("GET", "/readyz")))[0] == 200
            status, _, body = await send(monitoring, http("GET", "/monitoring/prometheus/metrics"))
            assert status == 200 and b"kbert_queue_tokens" in body
            status, _, body = await send(monitoring, http("POST", "/nothing"))
            assert (status, json.loads(body)) == (404, {"error": "POST /nothing: Not Found."})
            status, headers, body = await send(monitoring, http("POST", "/healthz"))
            assert status == 405 and "get" in headers["allow"] and b"not allowed" in body.lower()
            for path in ("/healthz", "/monitoring/prometheus/metrics"):
                assert (await send(config.rest_api_port, http("GET", path)))[0] == 404

    event_loop.run(run())


def test_api_keys(model, tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(f"{KEYS[0]}\n\n")

    def rest(*headers):
        return http("POST", "/v1/models/m:predict", {"inputs": ["a"]}, *headers)

    async def run():
        async with running(**model, api_key_file=str(path), access_log=True) as config:
            port = config.rest_api_port
            for headers in (
                [],
                ["x-api-key: wrong"],
                ["x-api-key: "],
                [f"Authorization: Basic {KEYS[0]}"],
                [f"Authorization: Bearer {KEYS[1]}"],
                [f"Authorization: Bearer {KEYS[0]}\xff"],
            ):
                status, found, body = await send(port, rest(*headers))
                assert status == 401 and "an API key is required" in json.loads(body)["error"]
                assert found["www-authenticate"] == "bearer"
            for headers in ([f"X-API-Key: {KEYS[0]}"], [f"authorization: bearer {KEYS[0]}"]):
                assert (await send(port, rest(*headers)))[0] == 200
            for path_, status in (
                ("/healthz", 200),
                ("/readyz", 200),
                ("/monitoring/prometheus/metrics", 401),
                ("/v1/models/m", 401),
                ("/nothing", 401),
            ):
                assert (await send(port, http("GET", path_)))[0] == status, path_
            assert await ask_grpc(config) == "UNAUTHENTICATED"
            assert await ask_grpc(config, metadata=[("x-api-key", KEYS[1])]) == "UNAUTHENTICATED"
            assert await ask_grpc(config, metadata=[("x-api-key", KEYS[0])]) == 7
            bearer = [("authorization", f"Bearer {KEYS[0]}")]
            assert await ask_grpc(config, metadata=bearer) == 7
            path.write_text(f"{KEYS[1]}\n{KEYS[0]}x\n")  # rotated
            assert await ask_grpc(config, metadata=bearer) == "UNAUTHENTICATED"
            assert (await send(port, rest(f"x-api-key: {KEYS[1]}")))[0] == 200
            path.write_text("")  # half written: the previous keys stay
            assert (await send(port, rest(f"x-api-key: {KEYS[1]}")))[0] == 200

    with caplog.at_level(logging.INFO):
        event_loop.run(run())
    assert "has no key" in caplog.text and "previous contents stay" in caplog.text
    assert "127.0.0.1 rest_predict m OK" in caplog.text
    assert "rest_unknown - UNAUTHENTICATED" in caplog.text
    assert "grpc_Predict m OK" in caplog.text
    assert not any(key in caplog.text for key in KEYS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", "has no key; write one key per line"),
        ("0123456789abcdef\nshort\n", "the key in line 2 of .* has fewer than 16 characters"),
        (None, "--api_key_file: cannot read .*: No such file"),
    ],
)
def test_files_of_keys_that_cannot_be(tmp_path, text, message):
    if text is not None:
        (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match=message):
        ApiKeys(str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "bert.example"}, False),
        ({"host": "0.0.0.0", "allow_reload": True}, True),
        ({"allow_reload": False}, False),
    ],
)
def test_who_may_reload(settings, allowed):
    assert ServeConfig(model_base_path="x", **settings).reload_allowed == allowed


def test_a_reload_that_is_not_allowed(model):
    async def run():
        async with running(**model, allow_reload=False) as config:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{config.port}") as channel:
                stub = model_service_pb2_grpc.ModelServiceStub(channel)
                with pytest.raises(grpc.RpcError, match="without --allow_reload") as error:
                    await stub.HandleReloadConfigRequest(reload_request(("x", "/", (), {})))
                assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert await ask_grpc(config) == 7

    event_loop.run(run())


@needs("openssl")
def test_certificates_are_read_again(model, tmp_path):
    """The server's own and the CA of the clients, for new connections on both ports."""

    def make(name):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-nodes"]
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:P-256", *files, *subject]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    def put(name, target):
        for ending in ("key", "pem"):
            (tmp_path / f"new.{ending}").write_bytes((tmp_path / f"{name}.{ending}").read_bytes())
            os.replace(tmp_path / f"new.{ending}", tmp_path / f"{target}.{ending}")

    for name in ("one", "two", "client", "other"):
        make(name)
    put("one", "server")
    put("client", "ca")
    names = {"ssl_key": "server.key", "ssl_certificate": "server.pem", "ssl_client_ca": "ca.pem"}
    settings = {flag: str(tmp_path / name) for flag, name in names.items()}

    async def works(config, server, client):
        """(REST, gRPC): whether a client with a certificate gets an answer of this server."""
        context = ssl.create_default_context(cafile=tmp_path / f"{server}.pem")
        context.load_cert_chain(tmp_path / f"{client}.pem", tmp_path / f"{client}.key")
        rest = None
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", config.rest_api_port, ssl=context
            )
            writer.write(ASK)
            rest = await read_response(reader)
            writer.close()
        files = (f"{server}.pem", f"{client}.key", f"{client}.pem")
        read = [(tmp_path / file).read_bytes() for file in files]
        answer = await ask_grpc(config, grpc.ssl_channel_credentials(*read))
        return bool(rest and rest[0] == 200), answer == 7

    async def run():
        async with running(**model, **settings) as config:
            assert await works(config, "one", "client") == (True, True)
            assert await works(config, "one", "other") == (False, False)
            put("two", "server")
            assert await works(config, "two", "client") == (True, True)
            assert await works(config, "one", "client") == (False, False)
            put("other", "ca")
            assert await works(config, "two", "other") == (True, True)
            assert await works(config, "two", "client") == (False, False)
            (tmp_path / "server.key").write_bytes(b"half")
            assert await works(config, "two", "other") == (True, True)

    event_loop.run(run())


def test_the_log_cannot_flood(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    limit, shown = log.LogLimit(), []

    def record(level, message):
        made = logging.LogRecord("kbert.serve", level, "", 0, message, (), None)
        if limit.filter(made):
            shown.append(made.getMessage())

    for i in range(5000):
        record(logging.ERROR, f"accept failed {i}")
        if i % 1000 == 0:
            record(logging.INFO, f"version {i}")
    assert len(shown) == log.MAX_PROBLEMS + 5
    now[0] = log.PERIOD_S
    record(logging.ERROR, "and again")
    assert shown[-1] == "(4,980 more problems were not logged) and again"
    now[0] *= 2
    record(logging.ERROR, "later")
    assert shown[-1] == "later"


def test_connections_fit_into_the_limit_of_open_files(monkeypatch):
    limits, made = [1024, 4096], []
    fake = input_checks.resource
    monkeypatch.setattr(fake, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(fake, "setrlimit", lambda kind, values: made.append(values))
    input_checks.raise_open_file_limit(ServeConfig(model_base_path="x"))
    assert made == [(4096, 4096)]
    message = (
        r"--max_connections=5000 on 2 ports needs 10,200 open files; the limit is 4,096 "
        r"\(ulimit -Hn\)\. Use --max_connections=1948, or raise the limit\."
    )
    with pytest.raises(UserError, match=message):
        input_checks.raise_open_file_limit(ServeConfig(model_base_path="x", max_connections=5000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 8501}, "--port, --rest_api_port and --monitoring_port must differ; got 8501, 85"),
        ({"monitoring_port": 8500}, "must differ; got 8500, 8501 and 8500"),
        ({"port": 70_000}, "port must be >= 0 and <= 65535; got 70000"),
        ({"demo": True, "api_key_file": "x"}, "--demo cannot be used with --api_key_file"),
    ],
)
def test_settings_that_cannot_be_together(settings, message):
    with pytest.raises(UserError, match=message):
        ServeConfig(model_base_path="x", **settings)


def test_command_lines_of_tensorflow_serving_are_accepted():
    """With a note for each flag that has no effect; flags that would have one are unknown."""
    command = [
        sys.executable,
        "-m",
        "kbert.serve",
        "--model_base_path=/nothing",
        "--rest_api_port=8501",
    ]
    unused = ("enable_batching", "batching_parameters_file=/x", "flush_filesystem_caches=false")
    done = subprocess.run(
        [*command, *(f"--{flag}" for flag in unused)], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        f"note: --{name} has no effect here; see the table in docs/serving.md"
        for name in ("enable_batching", "flush_filesystem_caches", "batching_parameters_file")
    ]
    assert done.returncode == 2 and "no versions in /nothing" in done.stderr
    done = subprocess.run([*command, "--ssl_config_file=x"], capture_output=True, text=True)
    assert done.returncode == 2 and "Unknown command line flag 'ssl_config_file'" in done.stderr
