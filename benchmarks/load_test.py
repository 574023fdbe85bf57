"""Tests whether kbert.serve answers all requests under load, during version swaps and attacks.

    python -m benchmarks.load_test --seconds=300

Half of the clients use gRPC and half REST, with one text per request and persistent connections.
Every --swap_seconds seconds, a new version replaces the served one. One request in a hundred is
hostile: it must get the right error, and the other requests must still be answered. Each answer
must equal the first answer for the same text, up to 1e-5. The reported memory is the server's
resident memory, after the first tenth of the time and at the end.

Then four clients run for a twentieth of the time alone, and as long beside four attackers of each
kind; see `benchmarks.attackers`. The first kind are clients with 16 ordinary texts per request, who
keep the CPUs busy: they show what any load costs. Clients, attackers and server are processes of
their own; they share the CPUs.
"""

import asyncio
import collections
import datetime
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks import data
from benchmarks.flops import model_of
from benchmarks.infer import TINY, save_model
from benchmarks.report import machine
from benchmarks.serve import ServerSetup, write_texts

FLAGS = flags.FLAGS
PREDICT = "/v1/models/bert:predict"
# Hostile requests by REST: (path, body, expected status).
HOSTILE = (
    (PREDICT, b'{"inputs": ["a"', 400),
    (PREDICT, b'{"inputs": ["\xff"]}', 400),
    (PREDICT, b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", 400),
    (PREDICT, b'{"inputs": [1e400]}', 400),
    (PREDICT, b" " * (5 << 20), 413),
    ("/v1/models/bert/versions/999999:predict", b'{"inputs": ["a"]}', 404),
    ("/v1/models/none:predict", b'{"inputs": ["a"]}', 404),
)
CLIENTS = 4  # with one text per request
ATTACKS = {  # name -> kind of each attacker; see `benchmarks.attackers`
    "16 ordinary texts": ["ordinary"] * 4,
    "2,000 texts, or three of 1 MB": ["many", "long"] * 2,
    "the same, 32 attackers": ["many", "long"] * 16,
    "2 million numbers": ["numbers"] * 4,
    "262,143 empty lists": ["lists"] * 4,
    "300,000 objects": ["objects"] * 4,
    "131,072 tf.Examples": ["examples"] * 4,
    "gRPC: 2,000 texts, or three of 1 MB": ["grpc_many", "grpc_long"] * 2,
    "gRPC: a million numbers": ["grpc_numbers"] * 4,
    "gRPC: one number, repeated a million times": ["grpc_expanded"] * 4,
    "gRPC: 2 million empty strings": ["grpc_strings"] * 4,
    "gRPC: 300,000 inputs": ["grpc_names"] * 4,
    "gRPC: 131,072 tf.Examples": ["grpc_examples"] * 4,
    "gRPC: 60,000 tf.Examples": ["grpc_accepted"] * 4,
    "gRPC: 2 million empty tf.Examples": ["grpc_empty"] * 4,
}
# Bytes that are not valid requests.
NOT_REQUESTS = (
    b"\x16\x03\x01" * 50,
    b"GET / HTTP/1.1\r\nHost",
    b"POST / HTTP/1.1\r\na: \0\r\n\r\n",
)


class LoadTest:
    """Clients of a server, and counts of its answers.

    Args:
        server: ServerSetup.
        texts: list of str.

    Attributes:
        counts: Counter of "answered", "wrong", "failed", "hostile" and "hostile failed" requests,
            and of the attackers' requests by status, such as "attack: 200".
        first: dict of index of a text -> its first answer.
        versions: set of the versions served.
        taken: list of the durations of requests in seconds.
    """

    def __init__(self, server, texts):
        self.server, self.texts = server, texts
        self.counts, self.first, self.versions = collections.Counter(), {}, set()
        self.taken = []
        self._numbers = itertools.count()

    async def run(self, seconds, clients):
        """Runs this number of clients for some seconds.

        Returns:
            p50 and p99 of the latency of all answered requests so far, in milliseconds.
        """
        import aiohttp
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        self._end = time.monotonic() + seconds
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{self.server.ports[0]}") as channel,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            senders = [lambda i: self._by_grpc(stub, i), lambda i: self._by_rest(session, i)]
            running = [self._client(senders[k % 2], session) for k in range(clients)]
            await asyncio.gather(*running)
        return np.percentile(self.taken, [50, 99]) * 1e3

    async def _client(self, send, session):
        while (begin := time.monotonic()) < self._end:
            i = next(self._numbers)
            if i % 100 == 99:
                await self._hostile(session, i // 100)
                continue
            try:
                probabilities = await send(i)
                self.taken.append(time.monotonic() - begin)
                expected = self.first.setdefault(i % len(self.texts), probabilities)
                right = np.abs(np.subtract(probabilities, expected)).max() < 1e-5
                self.counts["answered" if right else "wrong"] += 1
            except Exception as error:
                self.counts["failed"] += 1
                print(f"request {i}: {type(error).__name__}: {error}"[:300], file=sys.stderr)

    async def _by_grpc(self, stub, i):
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = "bert"
        request.inputs["text"].CopyFrom(tf.make_tensor_proto([self.texts[i % len(self.texts)]]))
        answer = await stub.Predict(request, timeout=60)
        self.versions.add(answer.model_spec.version.value)
        return list(answer.outputs["probabilities"].float_val)

    async def _by_rest(self, session, i):
        body = {"inputs": [self.texts[i % len(self.texts)]]}
        async with session.post(self.server.address(PREDICT), json=body) as answer:
            assert answer.status == 200, await answer.text()
            return (await answer.json())["outputs"]["probabilities"][0]

    async def _hostile(self, session, i):
        self.counts["hostile"] += 1
        if i % 4 == 3:  # bytes that are not a request, from a client that disconnects
            port = self.server.ports[i // 4 % 2]
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(NOT_REQUESTS[i // 4 % len(NOT_REQUESTS)])
            writer.close()
            return
        path, body, status = HOSTILE[i % len(HOSTILE)]
        try:
            async with session.post(self.server.address(path), data=body) as answer:
                if answer.status != status or list(await answer.json()) != ["error"]:
                    raise ValueError(f"status {answer.status} instead of {status}")
        except Exception as error:
            self.counts["hostile failed"] += 1
            print(f"hostile {i}: {type(error).__name__}: {error}"[:300], file=sys.stderr)


async def swap(base, seconds, memory):
    """Replaces the served version every `seconds` seconds; calls `memory` before it does."""
    for number in itertools.count(2):
        await asyncio.sleep(seconds)
        memory()
        shutil.copytree(base / str(number - 1), base / "coming")
        (base / "coming").rename(base / str(number))
        if number > 3:
            shutil.rmtree(base / str(number - 3))


async def measure(server, base, texts, seconds):
    """Runs the clients and the swaps.

    Returns:
        the LoadTest, the duration in seconds, and a list of (seconds, memory of the server in MB).
    """
    test, begin, memory = LoadTest(server, texts), time.monotonic(), []

    def note():
        memory.append((time.monotonic() - begin, server.memory_mb("VmRSS")))

    swapping = asyncio.create_task(swap(base, FLAGS.swap_seconds, note))
    await test.run(seconds, FLAGS.clients)
    swapping.cancel()
    note()
    return test, time.monotonic() - begin, memory


def attack(server, path, seconds):
    """Yields the lines of a table: the latency of clients, alone and beside attackers.

    Args:
        server: ServerSetup. path: of the JSON file with the texts.
    """
    texts = json.loads(pathlib.Path(path).read_text())
    asyncio.run(LoadTest(server, texts).run(seconds / 4, CLIENTS))  # a warmup
    quiet = asyncio.run(LoadTest(server, texts).run(seconds, CLIENTS))
    yield "| attackers send | p50 | p99 | p99 / alone | failures | attackers' responses |"
    yield "| --- | --- | --- | --- | --- | --- |"
    yield f"| (none) | {quiet[0]:.0f} ms | {quiet[1]:.0f} ms | 1.0 | | |"
    for name, kinds in [*ATTACKS.items()][: 1 if FLAGS.quick else None]:
        test, begin = LoadTest(server, texts), 1.0
        port = server.ports[0 if kinds[0].startswith("grpc_") else 1]
        command = [sys.executable, "-m", "benchmarks.attackers", str(port), str(path)]
        command += [str(seconds + begin), *kinds]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attackers:
            attackers.stdout.readline()  # they have prepared their requests
            time.sleep(begin)  # they are busy
            p50, p99 = asyncio.run(test.run(seconds, CLIENTS))
            counts = json.loads(attackers.stdout.read())
        failures = test.counts["failed"] + test.counts["wrong"]
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))
        ratio = p99 / quiet[1]
        yield f"| {name} | {p50:.0f} ms | {p99:.0f} ms | {ratio:.1f} | {failures} | {statuses} |"


def main(_):
    """Runs the test."""
    from kbert.serving.saved_model import load_endpoint, save_endpoint

    with tempfile.TemporaryDirectory() as folder:
        save_model(TINY if FLAGS.quick else model_of(2, 128), f"{folder}/weights")
        texts, path = write_texts(f"{folder}/texts.json", data.mixed_lengths(256))
        base = pathlib.Path(folder) / "bert"
        weights = f"{folder}/weights/kbert"
        save_endpoint(load_endpoint(weights, max_seq_length=128), base / "1")
        server = ServerSetup(base, path, FLAGS.backend)
        seconds = 2 if FLAGS.quick else FLAGS.seconds
        test, seconds, memory = asyncio.run(measure(server, base, texts, seconds))
        attacked = [*attack(server, path, max(seconds / 20, 0.5))]
        server.stop()
    counts, sent = test.counts, sum(test.counts.values()) - test.counts["hostile failed"]
    early = next(mb for at, mb in memory if at >= seconds / 10 or mb == memory[-1][1])
    p50, p99 = np.percentile(test.taken, [50, 99]) * 1e3
    print(f"{machine()}; {datetime.date.today()}")
    print(
        f"{sent:,} requests in {seconds:.0f} s from {FLAGS.clients} clients ({sent / seconds:.0f} "
        f"per second), {len(test.versions)} versions, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    )
    print(
        f"{counts['answered']:,} answered, {counts['failed']:,} failures, {counts['wrong']:,} "
        f"wrong; hostile: {counts['hostile']:,}, {counts['hostile failed']:,} got another status"
    )
    print(f"memory: {early:,.0f} MB after a tenth of the time, {memory[-1][1]:,.0f} MB at the end")
    print("\n".join(attacked))


if __name__ == "__main__":
    flags.DEFINE_float("seconds", 300.0, "duration of the test in seconds")
    flags.DEFINE_float("swap_seconds", 10.0, "seconds between two versions")
    flags.DEFINE_integer("clients", 64, "number of concurrent clients")
    flags.DEFINE_enum("backend", "tensorflow", ["openvino", "tensorflow"], "backend of kbert.serve")
    flags.DEFINE_string("python_kbert", sys.executable, "Python with kbert")
    flags.DEFINE_bool("quick", False, "test run of two seconds")
    app.run(main)
