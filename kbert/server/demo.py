"""The demo page for trying the models in a browser; serves their list and their attention.

The page is one file and loads nothing from other hosts. It gets predictions from the REST API, like
any other client.
"""

import asyncio
import base64
import hashlib
import importlib.resources
import json
import re
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_serving.apis import predict_pb2

from kbert.errors import UserError
from kbert.fields import is_text
from kbert.model.folder import ModelFolder
from kbert.model.models import BertModel
from kbert.server.errors import RequestError, invalid
from kbert.server.servable import Servable, Signature
from kbert.server.service import Service
from kbert.server.tensors import Arrays
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.utils.formats import is_quantized
from kbert.visualization.attention import attention_weights
from kbert.visualization.attention_page import attention_data, read_page

MAX_TOKENS = 128  # longer texts are truncated; the attention of BERT base then takes 6 MB
MAX_CHARACTERS = 20_000  # maximum length of a text, before truncation
MAX_ATTENTION_REQUESTS = 16  # maximum number of open attention requests
_SUMMARY = ("method", "inputs", "labels", "max_seq_length")  # keys of kbert.json for the page
_SIGNATURE = Signature("attention", None, {}, {})


class Demo:
    """The demo page at / with its HTTP headers, and the requests that it makes."""

    page: bytes
    headers: dict[str, str]

    def __init__(self, service: Service) -> None:
        self._service = service
        self.page, self.headers = _page()
        self._attention = weakref.WeakKeyDictionary()  # Servable -> AttentionServable; one entry
        self._one = asyncio.Lock()
        self._asking = 0

    def served(self) -> dict[str, Any]:
        """Returns the served models with their versions, newest first, as a JSON object.

        `method` is null if the SavedModel is not an export of kbert; else `inputs`, `labels` and
        `max_seq_length` are copied from its kbert.json.
        """
        models = []
        for name, versions in self._service.models.served().items():
            summaries = []
            for number in sorted(versions, reverse=True):
                metadata = versions[number].metadata or {"method": None}
                known = [key for key in _SUMMARY if key in metadata]
                summaries.append({"version": number, **{key: metadata[key] for key in known}})
            models.append({"name": name, "versions": summaries})
        return {"models": models}

    async def attention(self, request: Mapping[str, Any]) -> bytes:
        """Returns `attention_data` of a text as JSON, with a list of `notes`.

        One text is computed at a time.

        Args:
            request: dict of `model`, `text` and, optionally, `version` and `text_pair`.
        """
        spec, texts = _read(request)
        _, servable = self._service.models.find(spec)
        if not servable.metadata:
            raise invalid(
                f"model {spec.name!r} was not exported by kbert, so it has no attention weights."
            )
        if is_quantized(servable.metadata):
            raise invalid(
                f"model {spec.name!r} has int8 weights; attention needs a float32 export of the "
                f"model."
            )
        if self._asking >= MAX_ATTENTION_REQUESTS:
            raise RequestError(
                "RESOURCE_EXHAUSTED",
                f"{MAX_ATTENTION_REQUESTS} attention requests are open; try again later.",
            )
        self._asking += 1
        try:
            await self._one.acquire()
            if servable not in self._attention:
                self._attention.clear()
                self._attention[servable] = AttentionServable(servable)
            inputs = {name: np.array([text], object) for name, text in texts.items()}
            looking = self._service.predict(self._attention[servable], _SIGNATURE, inputs)
            task = asyncio.create_task(looking)
            task.add_done_callback(self._done)
            result = await asyncio.shield(task)  # computed even if the client disconnects
        finally:
            self._asking -= 1
        return await asyncio.to_thread(_as_json, result)

    def _done(self, task):
        self._one.release()
        if not task.cancelled():
            task.exception()  # mark as retrieved: the client may have disconnected


class AttentionServable(Servable):
    """The attention of an export's encoder, which is loaded at the first request."""

    metadata: None = None  # prevents batching with other requests

    def __init__(self, servable: Servable) -> None:
        self._folder = servable.folder
        self._read_in_text = ("[MASK]",) if servable.metadata["method"] == "fill_mask" else False
        self._most = min(servable.metadata["max_seq_length"], MAX_TOKENS)
        self._model = self._tokenizer = None

    def check(self, signature: Signature, inputs: Arrays) -> None:
        """Returns None: there are no rows that could share a batch."""

    def compute(self, signature: Signature, inputs: Arrays) -> dict[str, np.ndarray]:
        """Returns a dict of tokens (L,), weights (N, H, L, L) and notes; see `kbert.attention`.

        Args:
            inputs: dict of `text` and optionally `text_pair`, (1,) each.
        """
        notes, texts = [], {name: array[0] for name, array in inputs.items()}
        try:
            if self._model is None:
                folder = ModelFolder(self._folder)
                self._tokenizer = BertTokenizer.from_pretrained(
                    folder, special_tokens_in_text=self._read_in_text
                )
                self._model = BertModel.from_pretrained(
                    folder, add_pooling_layer=False, output_attentions=True
                )
            tokens, weights = attention_weights(
                self._model, self._tokenizer, **texts, report=notes.append, max_length=self._most
            )
        except UserError as error:
            raise invalid(str(error)) from None
        texts = {"tokens": np.array(tokens, object), "notes": np.array(notes, object)}
        return {"weights": weights, **texts}


def _read(request):
    """Parses a JSON request; returns its ModelSpec and a dict of its texts."""
    unknown = request.keys() - {"model", "version", "text", "text_pair"}
    if unknown:
        raise invalid(f"a request takes model, version, text and text_pair; got {min(unknown)!r}.")
    texts = {name: request[name] for name in ("text", "text_pair") if name in request}
    for name, value in ({"model": None, "text": None} | request).items():
        if name != "version" and not is_text(value):
            raise invalid(f"{name} must be a string.")
        if name != "version" and len(value) > MAX_CHARACTERS:
            raise invalid(
                f"{name} must have at most {MAX_CHARACTERS:,} characters; got {len(value):,}."
            )
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = request["model"]
    if "version" in request:
        if type(request["version"]) is not int or not 0 <= request["version"] < 2**63:
            raise invalid("version must be a non-negative integer.")
        spec.version.value = request["version"]
    return spec, texts


def _as_json(result):
    data = attention_data(result["tokens"], result["weights"])
    return json.dumps({**data, "notes": list(result["notes"])}).encode()


def _page() -> tuple[bytes, dict[str, str]]:
    """Returns the HTML of the page, with the attention viewer included, and its HTTP headers.

    The headers allow the browser to use only the page's own script and style, identified by their
    hashes, and to send requests only to this server. Text cannot become HTML (Trusted Types).
    """
    text = read_page(importlib.resources.files("kbert.server") / "demo.html")
    hashes = {}
    for name in ("style", "script"):
        (part,) = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        hashes[name] = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        f"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return text.encode(), headers
