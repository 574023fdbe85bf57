"""kbert.serve under load, compared with calling the SavedModel from Python.

    python -m benchmarks.serve --json=serve.json
    python -m benchmarks.serve --model=base --rounds=3

A classifier with random weights is exported and served, once with OpenVINO and once with
TensorFlow; each request contains one text of 10 to 128 tokens. The SavedModel is called in a
separate process with the same texts, one by one and in batches of 32 in their order. Sides take
turns. The clients share the CPUs with the server, so the results include their cost.
"""

import asyncio
import contextlib
import datetime
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks import data
from benchmarks.figures import machine
from benchmarks.infer import MODELS, TINY, save_model

FLAGS = flags.FLAGS
# Measurements: (side, name, concurrent clients, texts per request).
ASKED = (
    *(("saved_model", "SavedModel, one text per call", 1, 1),),
    *(("saved_model", "SavedModel, 32 texts per call", 1, 32),),
    *(
        (side, f"kbert.serve, {name}, {clients} client{'s' * (clients > 1)} ({door})", clients, 1)
        for side, name in (("openvino", "OpenVINO"), ("tensorflow", "TensorFlow"))
        for clients, door in ((1, "gRPC"), (64, "gRPC"), (64, "REST"))
    ),
)
_SAVED_MODEL = """
import json, sys, time
import tensorflow as tf
import tensorflow_text
answer = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
texts = json.load(open(sys.argv[2]))
print("ready", flush=True)
for line in sys.stdin:
    size, seconds = json.loads(line)
    taken, begin, i = [], time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        answer(text=tf.constant([texts[(i + k) % len(texts)] for k in range(size)]))
        taken.append(time.perf_counter() - start)
        i += size
    print(json.dumps({"taken": taken, "seconds": time.perf_counter() - begin}), flush=True)
"""


class SavedModelSide:
    """The SavedModel in a separate process."""

    def __init__(self, folder, texts):
        command = [FLAGS.python_kbert, "-c", _SAVED_MODEL, str(folder), str(texts)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._process.stdout.readline()

    def ask(self, clients, size, door, seconds):
        print(json.dumps([size, seconds]), file=self._process.stdin, flush=True)
        found = json.loads(self._process.stdout.readline())
        return found["taken"], found["seconds"]

    def stop(self):
        self._process.kill()


class ServerSide:
    """kbert.serve with a backend."""

    def __init__(self, base, texts, backend):
        self._texts = json.loads(pathlib.Path(texts).read_text())
        self._ports = [_free_port(), _free_port()]
        ports = [f"--port={self._ports[0]}", f"--rest_api_port={self._ports[1]}"]
        command = [FLAGS.python_kbert, "-m", "kbert.serve", f"--backend={backend}", *ports]
        command += ["--model_name=bert", f"--model_base_path={base}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self._process.stdout:
            if line.startswith("ready"):
                break

    def ask(self, clients, size, door, seconds):
        asks = {"gRPC": self._by_grpc, "REST": self._by_rest}
        return asyncio.run(asks[door](clients, seconds))

    async def _by_grpc(self, clients, seconds):
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        requests = []
        for text in self._texts:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "bert"
            request.inputs["text"].CopyFrom(tf.make_tensor_proto([text]))
            requests.append(request)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._ports[0]}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            return await _load(
                lambda i: stub.Predict(requests[i % len(requests)]), clients, seconds
            )

    async def _by_rest(self, clients, seconds):
        import aiohttp

        address = f"http://127.0.0.1:{self._ports[1]}/v1/models/bert:predict"

        async def ask(i):
            body = {"inputs": {"text": [self._texts[i % len(self._texts)]]}}
            async with session.post(address, json=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await _load(ask, clients, seconds)

    def memory_mb(self):
        status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1e3

    def stop(self):
        self._process.terminate()
        self._process.wait(60)


async def _load(ask, clients, seconds):
    """Runs clients that send requests in a loop; returns (seconds per request, total seconds)."""
    taken, begin, numbers = [], time.perf_counter(), iter(range(10**9))

    async def client():
        while (start := time.perf_counter()) - begin < seconds:
            await ask(next(numbers))
            taken.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    return taken, time.perf_counter() - begin


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def measured(sides, rounds, seconds):
    """dict of the names of ASKED -> rates (texts per second) and times, over all rounds."""
    asked = [row for row in ASKED if row[0] in sides]
    found = {name: {"rates": [], "taken": []} for _, name, _, _ in asked}
    for turn in range(rounds + 1):  # the first round is a warmup
        for side, name, clients, size in asked:
            door = "REST" if "REST" in name else "gRPC"
            taken, total = sides[side].ask(clients, size, door, seconds if turn else seconds / 4)
            if turn:
                found[name]["rates"].append(len(taken) * size / total)
                found[name]["taken"].extend(taken)
            print(f"round {turn} of {rounds}: {name}", file=sys.stderr)
    return found


def table(found):
    """Formats the results as a Markdown table."""
    yield "| | texts/s: median (lowest to highest) | of the first | p50 | p99 |"
    yield "| --- | --- | --- | --- | --- |"
    base = found[ASKED[0][1]]["rates"]
    for name, values in found.items():
        rates = values["rates"]
        ratio = statistics.median(r / b for r, b in zip(rates, base, strict=True))
        p50, p99 = np.percentile(values["taken"], [50, 99]) * 1e3
        spread = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
        yield f"| {name} | {spread} | {ratio:.2f} | {p50:.0f} ms | {p99:.0f} ms |"


def main(_):
    """Runs the measurements."""
    from kbert.serving.export import export

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = TINY if FLAGS.quick else MODELS[FLAGS.model]
        save_model(model, f"{folder}/weights")
        rng = np.random.default_rng(0)
        texts = [
            " ".join(f"w{i}" for i in rng.integers(1000, 30000, length - 2))
            for length in data.mixed_lengths(256)
        ]
        path = pathlib.Path(folder) / "texts.json"
        path.write_text(json.dumps(texts))
        base = f"{folder}/models/bert"
        export(f"{folder}/weights/kbert", f"{base}/1", max_seq_length=128, report=lambda line: None)
        sides = {"saved_model": SavedModelSide(f"{base}/1", path)}
        stack.callback(sides["saved_model"].stop)
        for backend in FLAGS.backends:
            sides[backend] = ServerSide(base, path, backend)
            stack.callback(sides[backend].stop)
        rounds, seconds = (1, 0.2) if FLAGS.quick else (FLAGS.rounds, FLAGS.round_seconds)
        found = measured(sides, rounds, seconds)
        memory = {backend: sides[backend].memory_mb() for backend in FLAGS.backends}
    print(f"{machine()}; {rounds} rounds of {seconds:g} s; {datetime.date.today()}")
    print("\n".join(table(found)))
    print("peak memory: " + ", ".join(f"{name} {mb:,.0f} MB" for name, mb in memory.items()))
    if FLAGS.json:
        for values in found.values():
            values["p50_ms"], values["p99_ms"] = np.percentile(values.pop("taken"), [50, 99]) * 1e3
        text = json.dumps({"machine": machine(), "found": found, "memory_mb": memory}, indent=2)
        pathlib.Path(FLAGS.json).write_text(text + "\n")


if __name__ == "__main__":
    flags.DEFINE_enum("model", "minilm", list(MODELS), "size of the classifier")
    flags.DEFINE_list("backends", ["openvino", "tensorflow"], "what computes the served model")
    flags.DEFINE_string("python_kbert", sys.executable, "Python that has kbert")
    flags.DEFINE_integer("rounds", 5, "rounds, each side once in each")
    flags.DEFINE_float("round_seconds", 6.0, "how long each is asked in a round")
    flags.DEFINE_bool("quick", False, "a tiny model and one short round: does everything work?")
    flags.DEFINE_string("json", None, "file to write all figures to")
    app.run(main)
