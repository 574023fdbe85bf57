"""Attackers of a server: each sends the largest requests that it accepts, as fast as it can.

    python -m benchmarks.attackers PORT TEXTS_FILE SECONDS KIND [KIND ...]

It is a process of its own, with a thread and a plain socket (or a channel) for each attacker, and
sends prepared bytes: an attacker costs the machine under test little more than one on another
machine would. An attacker waits at most two seconds for a response, and then disconnects (by gRPC,
it cancels the call). `benchmarks.load_test` starts it. PORT is the REST port, or the gRPC port if
all kinds begin with "grpc_". The program prints a line when the attack begins.
"""

import collections
import contextlib
import json
import pathlib
import socket
import sys
import threading
import time

import grpc
import numpy as np

MAX_BYTES = 4 << 20  # default of --max_request_bytes
PATIENCE_S = 2
PREDICT = "/v1/models/bert:predict"


def request(body, path=PREDICT):
    """Returns the bytes of a POST request. body: bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def filled(begin, unit, end="]}"):
    """Returns the largest body that repeats a unit."""
    count = (MAX_BYTES - len(begin) - len(end)) // (len(unit) + 1)
    return f"{begin}{','.join([unit] * count)}{end}".encode()


def requests(texts):
    """Returns a dict of kind -> bytes of a request. texts: list of str."""
    words = " ".join(texts).split()
    rows = [" ".join(words[k : k + 126]) for k in range(2000)]
    lists = ",".join(["[]"] * 262_143)  # a body with more "[" is rejected at once
    examples = ",".join(['{"text":"a"}'] * 131_072)
    ids = '{"signature_name":"from_ids","inputs":{"input_ids":[['
    classify = f'{{"signature_name":"classify","examples":[{examples}]}}'.encode()
    return {
        "ordinary": request(json.dumps({"inputs": rows[:16]}).encode()),
        "many": request(json.dumps({"inputs": rows}).encode()),
        "long": request(json.dumps({"inputs": [" ".join(words * 1000)[: 10**6]] * 3}).encode()),
        "numbers": request(filled(ids, "1", "]]}}")),
        "lists": request(f'{{"inputs":[{lists}]}}'.encode().ljust(MAX_BYTES)),
        "objects": request(filled('{"instances":[', '{"text":"a"}')),
        "examples": request(classify, "/v1/models/bert:classify"),
    }


def grpc_requests(texts):
    """Returns a dict of kind -> (path of a method, bytes of a message). texts: list of str."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    service = "/tensorflow.serving.PredictionService"

    def predict(name, tensor, signature="serving_default"):
        message = predict_pb2.PredictRequest(inputs={name: tensor})
        message.model_spec.name, message.model_spec.signature_name = "bert", signature
        return f"{service}/Predict", message.SerializeToString()

    def classify(example, count):
        message = classification_pb2.ClassificationRequest()
        message.model_spec.name, message.model_spec.signature_name = "bert", "classify"
        message.input.example_list.examples.extend([example] * count)
        return f"{service}/Classify", message.SerializeToString()

    words = " ".join(texts).split()
    rows = [" ".join(words[k : k + 126]) for k in range(2000)]
    long = [" ".join(words * 1000)[: 10**6]] * 3
    count = (MAX_BYTES - 1000) // 4  # int32
    numbers = tf.make_tensor_proto(np.ones((1, count), np.int32))
    empty = [b""] * ((MAX_BYTES - 1000) // 2)
    expanded = tf.make_tensor_proto(1, tf.int32, (1, count))  # one value for the whole shape
    example = tf.train.Example()
    example.features.feature["text"].bytes_list.value.append(b"a")
    named = predict_pb2.PredictRequest()
    named.model_spec.name = "bert"
    for number in range(300_000):
        named.inputs[str(number)].SetInParent()
    return {
        "grpc_many": predict("text", tf.make_tensor_proto(rows)),
        "grpc_long": predict("text", tf.make_tensor_proto(long)),
        "grpc_numbers": predict("input_ids", numbers, "from_ids"),
        "grpc_expanded": predict("input_ids", expanded, "from_ids"),
        "grpc_strings": predict("text", tensor_pb2.TensorProto(dtype=7, string_val=empty)),
        "grpc_names": (f"{service}/Predict", named.SerializeToString()),
        "grpc_examples": classify(example, 131_072),
        "grpc_accepted": classify(example, 60_000),
        "grpc_empty": classify(tf.train.Example(), (MAX_BYTES - 1000) // 2),
    }


def send(connection, data):
    """Sends a request and reads its response; returns its status."""
    connection.sendall(data)
    with connection.makefile("rb") as file:
        status, size = file.readline().split()[1].decode(), 0
        while (line := file.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        file.read(size)
    return status


def attack(port, data, end, counts):
    """Sends a request again and again until `end`; counts the statuses."""
    while time.monotonic() < end:
        address = ("127.0.0.1", port)
        with contextlib.suppress(OSError, IndexError), socket.create_connection(address) as open_:
            open_.settimeout(PATIENCE_S)
            while time.monotonic() < end:
                counts["no response"] += 1
                status = send(open_, data)
                counts["no response"] -= 1
                counts[status] += 1
                time.sleep(0.01 * (status != "200"))


def attack_by_grpc(port, prepared, end, counts):
    """Does the same by gRPC. prepared: (path of the method, bytes of the message)."""
    method, data = prepared
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(method)
        while time.monotonic() < end:
            try:
                call(data, timeout=PATIENCE_S)
                counts["OK"] += 1
            except grpc.RpcError as error:
                counts[error.code().name] += 1
                time.sleep(0.01)


def main():
    """Runs an attacker for each kind; prints the counts of the statuses as JSON."""
    port, path, seconds, *kinds = sys.argv[1:]
    by_grpc = kinds[0].startswith("grpc_")
    texts = json.loads(pathlib.Path(path).read_text())
    prepared = grpc_requests(texts) if by_grpc else requests(texts)
    print("attacking", flush=True)
    end, counts = time.monotonic() + float(seconds), collections.Counter()
    arguments = [(int(port), prepared[kind], end, counts) for kind in kinds]
    target = attack_by_grpc if by_grpc else attack
    threads = [threading.Thread(target=target, args=some) for some in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
