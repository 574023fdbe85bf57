"""Queries a served BERT by gRPC or REST; requires `pip install tensorflow-serving-api`.

    python export/serving/client.py --text="A film to remember."
    python export/serving/client.py --rest --text="Who wrote it?" --name=question \\
        --text="Ada wrote it." --name=context
"""

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from tensorflow import make_ndarray, make_tensor_proto
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

if TYPE_CHECKING:
    import numpy as np


def ask_grpc(
    address: str,
    model: str,
    label: str | None,
    inputs: Mapping[str, Sequence[str]],
    timeout: float,
) -> "dict[str, np.ndarray]":
    """Returns the outputs by name. label: of the version, or None. timeout: in seconds."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    if label:
        request.model_spec.version_label = label
    for name, texts in inputs.items():
        request.inputs[name].CopyFrom(make_tensor_proto(texts))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(request, timeout=timeout)
    return {name: make_ndarray(tensor) for name, tensor in answer.outputs.items()}


def ask_rest(
    address: str,
    model: str,
    label: str | None,
    inputs: Mapping[str, Sequence[str]],
    timeout: float,
) -> dict[str, Any]:
    """Returns the outputs by name, as nested lists. See `ask_grpc`."""
    path = f"v1/models/{model}{f'/labels/{label}' if label else ''}:predict"
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(f"http://{address}/{path}", body)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        outputs = json.load(answer)["outputs"]
    return outputs if isinstance(outputs, dict) else {"output": outputs}


def main() -> None:
    """Sends the texts of the command line and prints the outputs."""
    parser = argparse.ArgumentParser(description="Queries a served BERT.")
    parser.add_argument(
        "--text", action="append", required=True, help="input text; repeat for more texts"
    )
    parser.add_argument(
        "--name", action="append", help="name of the input of each --text (default: text)"
    )
    parser.add_argument("--model", default="bert")
    parser.add_argument(
        "--label", help="version label, such as stable; default: the newest version"
    )
    parser.add_argument("--rest", action="store_true", help="use REST instead of gRPC")
    parser.add_argument("--address", help="default: 127.0.0.1:8500, with --rest 127.0.0.1:8501")
    parser.add_argument("--timeout", type=float, default=10, help="seconds")
    asked = parser.parse_args()
    names = asked.name or ["text"] * len(asked.text)
    if len(names) != len(asked.text):
        parser.error(f"{len(asked.text)} --text require as many --name; got {len(names)}.")
    address = asked.address or f"127.0.0.1:{8501 if asked.rest else 8500}"
    inputs = {}
    for name, text in zip(names, asked.text, strict=True):
        inputs.setdefault(name, []).append(text)
    ask = ask_rest if asked.rest else ask_grpc
    try:
        outputs = ask(address, asked.model, asked.label, inputs, asked.timeout)
    except grpc.RpcError as error:
        sys.exit(f"error: {address}: {error.code().name}: {' '.join(error.details().split())}")
    except (OSError, http.client.HTTPException) as error:  # an error response, or no server
        said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
        sys.exit(f"error: {address}: {error} {said}".rstrip())
    for name, value in outputs.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
