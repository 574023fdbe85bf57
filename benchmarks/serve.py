"""Throughput and latency of kbert.serve, compared with calling the SavedModel from Python.

    python -m benchmarks.serve --json=serve.json
    python -m benchmarks.serve --model=base --rounds=3

A classifier with random weights is exported and served, with OpenVINO and with TensorFlow; each
request contains one text of 10 to 128 tokens. The SavedModel is called in a separate process with
the same texts in the same order, one by one and in batches of 32. The setups take turns. The
clients share the CPUs with the server, so the results include the cost of the clients.
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
from benchmarks.infer import MODELS, TINY, save_model
from benchmarks.report import machine

FLAGS = flags.FLAGS
# (key of the setup, name, concurrent clients, texts per request).
MEASUREMENTS = (
    *(("saved_model", "SavedModel, one text per call", 1, 1),),
    *(("saved_model", "SavedModel, 32 texts per call", 1, 32),),
    *(
        (key, f"kbert.serve, {name}, {clients} client{'s' * (clients > 1)} ({api})", clients, 1)
        for key, name in (("openvino", "OpenVINO"), ("tensorflow", "TensorFlow"))
        for clients, api in ((1, "gRPC"), (64, "gRPC"), (64, "REST"))
    ),
)
_SAVED_MODEL = """
import json, sys, time
import tensorflow as tf
import tensorflow_text
predict = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
texts = json.load(open(sys.argv[2]))
print("ready", flush=True)
for line in sys.stdin:
    size, seconds = json.loads(line)
    taken, begin, i = [], time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        predict(text=tf.constant([texts[(i + k) % len(texts)] for k in range(size)]))
        taken.append(time.perf_counter() - start)
        i += size
    print(json.dumps({"taken": taken, "seconds": time.perf_counter() - begin}), flush=True)
"""


class SavedModelSetup:
    """The SavedModel in a separate process.

    Args:
        folder: folder of the SavedModel.
        texts: path of a JSON file with a list of str.
    """

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

    def run(self, clients, size, api, seconds):
        print(json.dumps([size, seconds]), file=self._process.stdin, flush=True)
        result = json.loads(self._process.stdout.readline())
        return result["taken"], result["seconds"]

    def stop(self):
        self._process.kill()


class ServerSetup:
    """kbert.serve with one of its backends, in a separate process.

    Args:
        base: folder of the versions.
        texts: path of a JSON file with a list of str.
        backend: "openvino" or "tensorflow".
    """

    def __init__(self, base, texts, backend):
        self._texts = json.loads(pathlib.Path(texts).read_text())
        self.ports = [_free_port(), _free_port()]
        ports = [f"--port={self.ports[0]}", f"--rest_api_port={self.ports[1]}"]
        command = [FLAGS.python_kbert, "-m", "kbert.serve", f"--backend={backend}", *ports]
        command += ["--model_name=bert", f"--model_base_path={base}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self._process.stdout:
            if line.startswith("ready"):
                break

    def run(self, clients, size, api, seconds):
        load = {"gRPC": self._by_grpc, "REST": self._by_rest}[api]
        return asyncio.run(load(clients, seconds))

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
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.ports[0]}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            return await _load(
                lambda i: stub.Predict(requests[i % len(requests)]), clients, seconds
            )

    async def _by_rest(self, clients, seconds):
        import aiohttp

        address = self.address("/v1/models/bert:predict")

        async def send(i):
            body = {"inputs": {"text": [self._texts[i % len(self._texts)]]}}
            async with session.post(address, json=body) as response:
                assert response.status == 200, await response.text()
                await response.read()

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await _load(send, clients, seconds)

    def address(self, path):
        return f"http://127.0.0.1:{self.ports[1]}{path}"

    def memory_mb(self, kind="VmHWM"):
        status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split(f"{kind}:")[1].split()[0]) / 1e3

    def stop(self):
        self._process.terminate()
        self._process.wait(60)


async def _load(send, clients, seconds):
    """Runs clients that send requests in a loop for some seconds.

    Args:
        send: coroutine function that takes the number of a request and awaits the response.

    Returns:
        the duration of each request in seconds, and the total duration.
    """
    taken, begin, numbers = [], time.perf_counter(), iter(range(10**9))

    async def client():
        while (start := time.perf_counter()) - begin < seconds:
            await send(next(numbers))
            taken.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    return taken, time.perf_counter() - begin


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def write_texts(path, lengths):
    """Writes random texts of the given lengths in tokens as JSON; returns them and the path."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(1000, 30000, n - 2)) for n in lengths]
    pathlib.Path(path).write_text(json.dumps(texts))
    return texts, path


def measure(setups, rounds, seconds):
    """Runs the measurements of the given setups in turns.

    Returns:
        dict of name of the measurement -> dict of `rates`, the texts per second in each round, and
        `taken`, the durations of all requests in seconds.
    """
    selected = [row for row in MEASUREMENTS if row[0] in setups]
    results = {name: {"rates": [], "taken": []} for _, name, _, _ in selected}
    for number in range(rounds + 1):  # the first round is a warmup
        for key, name, clients, size in selected:
            api = "REST" if "REST" in name else "gRPC"
            taken, total = setups[key].run(clients, size, api, seconds if number else seconds / 4)
            if number:
                results[name]["rates"].append(len(taken) * size / total)
                results[name]["taken"].extend(taken)
            print(f"round {number} of {rounds}: {name}", file=sys.stderr)
    return results


def table(results):
    """Yields the lines of a Markdown table of the results."""
    yield "| setup | texts/s: median (lowest to highest) | ratio to the first row | p50 | p99 |"
    yield "| --- | --- | --- | --- | --- |"
    base = results[MEASUREMENTS[0][1]]["rates"]
    for name, values in results.items():
        rates = values["rates"]
        ratio = statistics.median(r / b for r, b in zip(rates, base, strict=True))
        p50, p99 = np.percentile(values["taken"], [50, 99]) * 1e3
        spread = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
        yield f"| {name} | {spread} | {ratio:.2f} | {p50:.0f} ms | {p99:.0f} ms |"


def main(_):
    """Runs the measurements."""
    from kbert.serving.saved_model import load_endpoint, save_endpoint

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = TINY if FLAGS.quick else MODELS[FLAGS.model]
        save_model(model, f"{folder}/weights")
        _, path = write_texts(f"{folder}/texts.json", data.mixed_lengths(256))
        base = f"{folder}/models/bert"
        save_endpoint(load_endpoint(f"{folder}/weights/kbert", max_seq_length=128), f"{base}/1")
        setups = {"saved_model": SavedModelSetup(f"{base}/1", path)}
        stack.callback(setups["saved_model"].stop)
        for backend in FLAGS.backends:
            setups[backend] = ServerSetup(base, path, backend)
            stack.callback(setups[backend].stop)
        rounds, seconds = (1, 0.2) if FLAGS.quick else (FLAGS.rounds, FLAGS.round_seconds)
        results = measure(setups, rounds, seconds)
        memory = {backend: setups[backend].memory_mb() for backend in FLAGS.backends}
    print(f"{machine()}; {rounds} rounds of {seconds:g} s; {datetime.date.today()}")
    print("\n".join(table(results)))
    print("peak memory: " + ", ".join(f"{name} {mb:,.0f} MB" for name, mb in memory.items()))
    if FLAGS.json:
        for values in results.values():
            values["p50_ms"], values["p99_ms"] = np.percentile(values.pop("taken"), [50, 99]) * 1e3
        text = json.dumps({"machine": machine(), "results": results, "memory_mb": memory}, indent=2)
        pathlib.Path(FLAGS.json).write_text(text + "\n")


if __name__ == "__main__":
    flags.DEFINE_enum("model", "minilm", list(MODELS), "size of the classifier")
    flags.DEFINE_list("backends", ["openvino", "tensorflow"], "backends of kbert.serve")
    flags.DEFINE_string("python_kbert", sys.executable, "Python with kbert")
    flags.DEFINE_integer("rounds", 5, "number of rounds; each setup runs once per round")
    flags.DEFINE_float("round_seconds", 6.0, "seconds per setup and round")
    flags.DEFINE_bool("quick", False, "test run: a tiny model and one short round")
    flags.DEFINE_string("json", None, "file for all results")
    app.run(main)
