"""Sends texts to a served BERT by gRPC or REST. Requires `pip install tensorflow-serving-api`.

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


def predict_grpc(
    address: str,
    model: str,
    label: str | None,
    inputs: Mapping[str, Sequence[str]],
    timeout: float,
) -> "dict[str, np.ndarray]":
    """Sends a request by gRPC; returns a dict of output name -> array.

    Args:
        address: HOST:PORT.
        model: name of the served model.
        label: version label, or None for the newest version.
        inputs: dict of input name -> texts.
        timeout: in seconds.

    Raises:
        grpc.RpcError: the server is unreachable or returns an error.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    if label:
        request.model_spec.version_label = label
    for name, texts in inputs.items():
        request.inputs[name].CopyFrom(make_tensor_proto(texts))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(request, timeout=timeout)
    return {name: make_ndarray(tensor) for name, tensor in response.outputs.items()}


def predict_rest(
    address: str,
    model: str,
    label: str | None,
    inputs: Mapping[str, Sequence[str]],
    timeout: float,
) -> dict[str, Any]:
    """Sends a request by REST; returns a dict of output name -> nested lists.

    Args:
        address, model, label, inputs, timeout: as for `predict_grpc`.

    Raises:
        OSError, http.client.HTTPException: the server is unreachable or returns an error.
    """
    path = f"v1/models/{model}{f'/labels/{label}' if label else ''}:predict"
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(f"http://{address}/{path}", body)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        outputs = json.load(response)["outputs"]
    return outputs if isinstance(outputs, dict) else {"output": outputs}


def main() -> None:
    """Sends the texts from the command line and prints the outputs."""
    parser = argparse.ArgumentParser(description="Sends texts to a served BERT.")
    parser.add_argument(
        "--text", action="append", required=True, help="input text; repeat for more texts"
    )
    parser.add_argument(
        "--name", action="append", help="name of the input of each --text (default: text)"
    )
    parser.add_argument("--model", default="bert", help="name of the served model; default: bert")
    parser.add_argument(
        "--label", help="version label, such as stable; default: the newest version"
    )
    parser.add_argument("--rest", action="store_true", help="use REST instead of gRPC")
    parser.add_argument(
        "--address", help="HOST:PORT; default: 127.0.0.1:8500, with --rest 127.0.0.1:8501"
    )
    parser.add_argument("--timeout", type=float, default=10, help="in seconds; default: 10")
    args = parser.parse_args()
    names = args.name or ["text"] * len(args.text)
    if len(names) != len(args.text):
        parser.error(f"{len(args.text)} --text need as many --name, or none; got {len(names)}.")
    address = args.address or f"127.0.0.1:{8501 if args.rest else 8500}"
    inputs = {}
    for name, text in zip(names, args.text, strict=True):
        inputs.setdefault(name, []).append(text)
    predict = predict_rest if args.rest else predict_grpc
    try:
        outputs = predict(address, args.model, args.label, inputs, args.timeout)
    except grpc.RpcError as error:
        sys.exit(f"error: {address}: {error.code().name}: {' '.join(error.details().split())}")
    except (OSError, http.client.HTTPException) as error:  # an error response, or no server
        body = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
        sys.exit(f"error: {address}: {error} {body}".rstrip())
    for name, value in outputs.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
