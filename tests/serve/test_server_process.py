"""The server as a process: versions, the end, TLS, limits, what cannot be served."""

import asyncio
import re
import shutil
import signal
import socket
import subprocess
import threading

import event_loop
import grpc
import numpy as np
import pytest
from exports import texts_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import free_port
from server_process import (
    arrays,
    needs,
    predict_request,
    refused,
    reload_request,
    serving,
    version_of,
    wait_for,
    waiting,
)
from tensorflow_serving.apis import (
    prediction_service_pb2_grpc,
)
from warm_python import PYTHON

from kbert.errors import UserError
from kbert.server.main import serve
from kbert.settings.serving import ServeConfig


def test_versions_come_and_go(exported, tmp_path):
    """A canary with labels, a roll-back, a broken version, a reload, and the end under load."""
    source, base = exported("embed")[0] / "7", tmp_path / "bert"
    shutil.copytree(source, base / "1")
    flags = ("model_name=bert", f"model_base_path={base}", "file_system_poll_wait_seconds=0.1")
    with serving(*flags, "backend=tensorflow", "enable_model_warmup=false") as server:
        failed, seen, over = [], set(), threading.Event()

        def ask_on():
            while not over.is_set():
                try:
                    seen.add(version_of(server, "bert"))
                except grpc.RpcError as error:
                    failed.append(error)

        threads = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        shutil.copytree(source, base / "2")  # file by file: it may be seen half done
        wait_for(lambda: seen == {1, 2})
        wait_for(lambda: "unloading version 1" in server.said)
        refused("NOT_FOUND", "has no version 1", lambda: version_of(server, "bert", version=1))

        (base / "3").mkdir()
        (base / "3" / "saved_model.pb").write_bytes(b"\x12\xffnot a model")
        wait_for(lambda: "bert version 3: cannot read" in server.said)
        assert version_of(server, "bert") == 2
        states = server.get("/v1/models/bert")[1]["model_version_status"]
        assert [(s["version"], s["state"]) for s in states][:2] == [
            ("3", "END"),
            ("2", "AVAILABLE"),
        ]
        assert "cannot read" in states[0]["status"]["error_message"]
        shutil.rmtree(base / "3")
        shutil.copytree(source, tmp_path / "3")
        (tmp_path / "3").rename(base / "3")  # mended
        wait_for(lambda: version_of(server, "bert") == 3)

        labels = {"stable": 2, "canary": 3}
        server.ask("HandleReloadConfigRequest", reload_request(("bert", base, (2, 3), labels)))
        assert version_of(server, "bert", label="stable") == 2
        assert version_of(server, "bert", label="canary") == version_of(server, "bert") == 3
        asked = "/v1/models/bert/labels/stable:predict"
        assert server.get(asked, {"inputs": ["a"]})[0] == 200

        bad = reload_request(("bert", base, (2, 3), {"stable": 9}))
        ask = (server.ask, "HandleReloadConfigRequest")
        refused("FAILED_PRECONDITION", "label stable is for version 9", *ask, bad)
        bad = reload_request(("bert", base, (), {}), ("other", tmp_path / "none", (), {}))
        refused("NOT_FOUND", "model other: no versions in", *ask, bad)
        bad = reload_request(("bert", base, (), {}), ("bert", base, (), {}))
        refused("INVALID_ARGUMENT", "a unique name", *ask, bad)
        broken = tmp_path / "broken"
        (broken / "2").mkdir(parents=True)
        (broken / "2" / "saved_model.pb").write_bytes(b"nothing")
        refused("NOT_FOUND", "cannot read", *ask, reload_request(("bert", broken, (), {})))
        refused("NOT_FOUND", "no versions", *ask, reload_request(("else", broken / "2", (), {})))
        assert version_of(server, "bert", label="stable") == 2  # as before

        shutil.rmtree(base / "3")  # roll-back
        server.ask("HandleReloadConfigRequest", reload_request(("bert", base, (), {})))
        assert version_of(server, "bert") == 2
        server.ask(
            "HandleReloadConfigRequest", reload_request(("bert", exported("embed")[0], (), {}))
        )
        assert version_of(server, "bert") == 7

        over.set()
        for thread in threads:
            thread.join()
        assert not failed and server.stop() == 0
    assert "stopping" in server.said and "Traceback" not in server.said


def test_the_end_answers_what_has_begun(exported):
    """None of its limits is reached, on a slow machine either."""
    flags = ("model_name=b", f"model_base_path={exported('tags')[0]}", "backend=tensorflow")
    limits = ("max_queue_tokens=12799872", "drain_seconds=300", "rest_api_timeout_in_ms=300000")
    with serving(*flags, *limits) as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == 1
        texts = ["the cat sat on a mat " * 500] * 16
        stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
        begun = stub.Predict.future(predict_request("b", {"text": texts}))
        found = {}

        def ask_rest():
            asked = {"inputs": texts[:4]}
            found["rest"] = server.get("/v1/models/b:predict", asked, timeout=300)

        wait_for(lambda: waiting(server) > 0 or begun.done())
        before = waiting(server)
        thread = threading.Thread(target=ask_rest)
        thread.start()
        wait_for(lambda: waiting(server) > before or not thread.is_alive())
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == 2
        assert len(begun.result(300).outputs["count"].int_val) == 16
        thread.join(300)
        assert found["rest"][0] == 200
        assert server.process.wait(300) == 0  # though somebody watches its health
        server.reader.join(60)
        assert "Traceback" not in server.said


def test_a_second_signal_ends_it_at_once(exported):
    """Without waiting for what is computed, nor for the thread that does."""
    flags = ("model_name=b", f"model_base_path={exported('tags')[0]}", "backend=tensorflow")
    limits = ("max_queue_tokens=12799872", "drain_seconds=300", "enable_model_warmup=false")
    with serving(*flags, *limits) as server:
        texts = ["the cat sat on a mat " * 2000] * 32
        stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
        begun = stub.Predict.future(predict_request("b", {"text": texts}))
        wait_for(lambda: waiting(server) > 0)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping" in server.said)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == -signal.SIGINT
        assert begun.code() == grpc.StatusCode.UNAVAILABLE
        server.reader.join(60)
        assert "Traceback" not in server.said


def test_a_signal_ends_it_while_it_loads(exported):
    base = exported("tags")[0]
    command = [PYTHON, "-m", "kbert.serve", f"--model_base_path={base}", "--port=0"]
    command += ["--backend=tensorflow", f"--rest_api_port={free_port()}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout.readline() == "loading default\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "stopping: waiting for open requests\n"
    assert process.wait(60) == 0


@needs("openssl", "curl")
def test_tls(exported, tmp_path):
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in ("server", "client", "stranger"):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *files, *subject)
    base = exported("embed")[0]
    flags = [f"ssl_certificate={tmp_path}/server.pem", f"ssl_key={tmp_path}/server.key"]
    flags += [f"ssl_client_ca={tmp_path}/client.pem", "model_name=b", f"model_base_path={base}"]
    with serving(*flags, "backend=tensorflow", "enable_model_warmup=false", secure=True) as server:

        def ask(name):
            read = [
                (tmp_path / f).read_bytes() for f in ("server.pem", f"{name}.key", f"{name}.pem")
            ]
            credentials = grpc.ssl_channel_credentials(*read)
            with grpc.secure_channel(f"localhost:{server.grpc}", credentials) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                return stub.Predict(predict_request("b", {"text": ["a"]}), timeout=120)

        def curl(name):
            address = f"https://localhost:{server.rest}/v1/models/b:predict"
            files = ["--cacert", "server.pem", "--cert", f"{name}.pem", "--key", f"{name}.key"]
            command = ["curl", "-s", *files, "-d", '{"inputs": ["a"]}', address]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

        assert ask("client").model_spec.version.value == 7
        assert "outputs" in curl("client").stdout
        with pytest.raises(grpc.RpcError):
            ask("stranger")
        assert curl("stranger").returncode != 0
        assert "https://" in server.said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no model to serve: set --model_base_path"),
        (
            {"model_base_path": "a", "model_config_file": "b"},
            "--model_config_file several; set only one",
        ),
        ({"model_base_path": "a", "port": 0, "rest_api_port": 0}, "are both 0"),
        (
            {"model_base_path": "a", "demo": True, "rest_api_port": 0},
            "--demo requires REST",
        ),
        ({"model_config_file": "a", "model_name": "b"}, "--model_name requires --model_base_path"),
        (
            {"model_base_path": "a", "model_config_file_poll_wait_seconds": 1.0},
            "--model_config_file_poll_wait_seconds requires --model_config_file.",
        ),
        (
            {"model_base_path": "a", "rest_api_port": 0, "rest_api_timeout_in_ms": 1},
            "--rest_api_timeout_in_ms requires REST",
        ),
        ({"model_base_path": "a", "ssl_key": "a"}, "must be set together"),
        ({"model_base_path": "a", "ssl_client_ca": "a"}, "requires --ssl_certificate"),
        ({"model_base_path": "a", "backend": "fast"}, "backend must be one of"),
        (
            {"model_base_path": "a", "max_queue_tokens": 0},
            "max_queue_tokens must be >= 1024; got 0",
        ),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ServeConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_base_path": "/nothing/here"}, "no versions in /nothing/here; a version is"),
        (
            {"model_base_path": "{base}/7"},
            "This folder is itself an export; use --model_base_path={base}",
        ),
        ({"model_config_file": "/nothing"}, "cannot read the model config file /nothing"),
        ({"model_base_path": "{base}", "port": "{taken}"}, "cannot listen on 127.0.0.1:{taken}"),
        (
            {"model_base_path": "{base}", "rest_api_port": "{taken}", "port": 0},
            "cannot listen on 127.0.0.1:{taken}",
        ),
        (
            {"model_base_path": "{base}", "ssl_key": "/nothing", "ssl_certificate": "/nothing"},
            "--ssl_key: cannot read /nothing: No such file",
        ),
    ],
)
def test_what_cannot_be_served(exported, settings, message):
    base = exported("embed")[0]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        settings = {
            name: taken
            if value == "{taken}"
            else value.format(base=base)
            if isinstance(value, str)
            else value
            for name, value in settings.items()
        }
        config = ServeConfig(
            **{"backend": "tensorflow", "enable_model_warmup": False, "port": free_port()}
            | settings
        )
        with pytest.raises(UserError, match=re.escape(message.format(base=base, taken=taken))):
            event_loop.run(serve(config))


def test_the_program_says_what_is_wrong():
    command = [PYTHON, "-m", "kbert.serve", "--model_base_path=/nothing/here"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: model default: no versions in")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_too_much_is_refused_and_memory_stays(exported):
    """What comes above the limits is refused at once, with the codes for "later"."""
    base = exported("tags")[0]
    flags = (
        "model_name=b",
        f"model_base_path={base}",
        "backend=tensorflow",
        "max_queue_tokens=25600",
    )
    with serving(*flags, "enable_model_warmup=false") as server:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
        text = "the cat sat on a mat " * 100  # 600 tokens, in 85 windows of 16

        def flood(count, texts):
            request = predict_request("b", {"text": texts})
            asked = [stub.Predict.future(request) for _ in range(count)]
            return {
                (call.code(), "leave of --max_queue_tokens=25,600" in (call.details() or ""))
                for call in asked
            }

        for _ in range(4):  # what a first load takes, it keeps
            flood(20, [text] * 3)
        before = server.memory()
        told = set().union(*(flood(20, [text] * 3) for _ in range(12)))
        busy = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told == {(grpc.StatusCode.OK, False), (busy, True)}
        assert server.memory() < before * 1.1 + 20
        full = event_loop.run(_statuses(server.rest, text, 25))
        assert set(full) == {200, 503}
        ask = (server.ask, "Predict", predict_request("b", {"text": [text] * 20}))
        refused("INVALID_ARGUMENT", "at most 12,800 are allowed, half of --max_queue", *ask)
        assert server.get("/v1/models/b:predict", {"inputs": ["a"]})[0] == 200


async def _statuses(port, text, count):
    import aiohttp

    address, body = f"http://127.0.0.1:{port}/v1/models/b:predict", {"inputs": [text] * 3}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask():
            async with session.post(address, json=body) as answer:
                await answer.read()
                return answer.status

        return await asyncio.gather(*(ask() for _ in range(count)))


@pytest.mark.slow
def test_64_clients_20000_requests_and_a_swap(exported, tmp_path):
    """None fails, every answer is right, and memory is flat."""
    source, method = exported("classify")
    base = tmp_path / "bert"
    shutil.copytree(source / "7", base / "1")
    texts = [text for text in texts_of(method, 60)["text"] if len(text) < 2000]
    wanted = method.reference_outputs(texts)["probabilities"]
    flags = ("model_name=bert", f"model_base_path={base}")
    with serving(*flags, "backend=tensorflow") as server:
        versions, worst, memory, numbers = {1: 0, 2: 0}, [0.0], [], iter(range(20_000))

        async def client(stub):
            for i in numbers:
                request = predict_request("bert", {"text": [texts[i % len(texts)]]})
                answer = await stub.Predict(request, timeout=60)
                versions[answer.model_spec.version.value] += 1
                apart = arrays(answer)["probabilities"][0] - wanted[i % len(texts)]
                worst[0] = max(worst[0], np.abs(apart).max())
                if i % 1000 == 999:
                    memory.append(server.memory())
                if i == 10_000:
                    shutil.copytree(source / "7", tmp_path / "2")
                    (tmp_path / "2").rename(base / "2")

        async def clients():
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                await asyncio.gather(*(client(stub) for _ in range(64)))

        event_loop.run(clients())
        assert sum(versions.values()) == 20_000 and min(versions.values()) > 2_000
        assert worst[0] < 1e-5
        assert max(memory[-3:]) < memory[4] * 1.15, memory
