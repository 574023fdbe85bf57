"""OpenAI's embeddings API, for exports that embed texts: POST /v1/embeddings.

Names and shapes: https://platform.openai.com/docs/api-reference/embeddings
"""

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from kbert.fields import is_text
from kbert.server.errors import invalid
from kbert.server.service import Service
from kbert.server.tensors import from_json, to_json

_KEYS = ("model", "input", "encoding_format", "dimensions", "user")
_ENCODINGS = ("float", "base64")


class Embeddings:
    """Answers requests for embeddings. service: Service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, request: Mapping[str, Any]) -> bytes:
        """Returns the response to a request as JSON.

        Args:
            request: JSON object with `model` and `input` (a string or a list of strings), and
                optionally `encoding_format` ("float" or "base64"), `dimensions` and `user`.
        """
        model, texts, encoding = _read(request)
        spec = predict_pb2.PredictRequest().model_spec
        spec.name = model
        _, servable, signature = self._service.find(spec)
        method = (servable.metadata or {}).get("method")
        if method != "embed":
            what = f"is an export of the method {method}" if method else "is not an export of kbert"
            raise invalid(f"model {model!r} {what}; embeddings need an export of the method embed.")
        E = signature.outputs["embedding"].shape[1]
        if request.get("dimensions", E) != E:
            raise invalid(f"dimensions must be {E}, the size of the model's embeddings, or unset.")
        inputs, tokens = {"text": from_json("input", texts, tf.string, 1)}, []
        outputs = await self._service.predict(
            servable, signature, inputs, report_tokens=tokens.append
        )
        arguments = model, outputs["embedding"], encoding, sum(tokens)
        return await asyncio.to_thread(_response, *arguments)


def _response(model, embeddings, encoding, tokens):
    if encoding == "base64":
        rows = [base64.b64encode(row.tobytes()).decode() for row in embeddings.astype("<f4")]
    else:
        rows = to_json("embedding", embeddings)
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": model, "usage": usage}
    return json.dumps(answer).encode()


def _read(request):
    """Returns (model, list of texts, encoding) of a request."""
    if unknown := request.keys() - set(_KEYS):
        raise invalid(f"a request takes {', '.join(_KEYS)}; got {min(unknown)[:100]!r}.")
    if not is_text(request.get("model")):
        raise invalid("model must be a string.")
    texts = request.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise invalid("input must be a string or a list of at least one string, not of token ids.")
    encoding = request.get("encoding_format", "float")
    if encoding not in _ENCODINGS:
        raise invalid(f"encoding_format must be {' or '.join(_ENCODINGS)}.")
    return request["model"], texts, encoding
