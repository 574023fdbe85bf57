"""A page to try the models in a browser, what it must know of them, and where they look.

The page is one file, which asks nothing of any other host. Predictions it asks of the REST API, as
any client does.
"""

import asyncio
import base64
import hashlib
import importlib.resources
import json
import re
import weakref

import numpy as np
from tensorflow_serving.apis import predict_pb2

from kbert.config import is_text
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.model.models import BertModel
from kbert.server.errors import RequestError, invalid
from kbert.server.servable import Signature
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.utils.formats import is_quantized
from kbert.visualization.attention import attention_weights
from kbert.visualization.attention_page import attention_data, read_page

MOST_TOKENS = 128  # of a text whose attention is shown; 6 MB for BERT base
MOST_CHARACTERS = 20_000  # of a text that is cut to so many tokens
MOST_ASKING = 16  # who wait for an attention
_SUMMARY = ("method", "inputs", "labels", "max_seq_length")  # of kbert.json, for the page
_SIGNATURE = Signature("attention", None, {}, {})


class Demo:
    """The page at / and what it asks. service: Service.

    Attributes:
        page: bytes of HTML. headers: dict of those that go with it.
    """

    def __init__(self, service):
        self._service = service
        self.page, self.headers = _page()
        self._attention = weakref.WeakKeyDictionary()  # Servable -> AttentionServable, of one
        self._one = asyncio.Lock()
        self._asking = 0

    def served(self):
        """What is served, as JSON can hold it: models, their versions, the newest first.

        `method` is null where a SavedModel is not kbert's; where it is, `inputs`, `labels` and
        `max_seq_length` are those of its kbert.json.
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

    async def attention(self, request):
        """JSON of `attention_data` of a text, with a list of `notes`; computed one at a time.

        Args:
            request: dict of `model`, `text` and, optionally, `version` and `text_pair`.

        Returns:
            bytes.

        Raises:
            RequestError: something else is asked, or too many wait.
        """
        spec, texts = _read(request)
        _, servable = self._service.models.find(spec)
        if not servable.metadata:
            raise invalid(f"model {spec.name!r} is no export of kbert: its attention is not known.")
        if is_quantized(servable.metadata):
            raise invalid(
                f"model {spec.name!r} has weights of 8 bits: its attention is shown by an export "
                f"in float32."
            )
        if self._asking >= MOST_ASKING:
            raise RequestError(
                "RESOURCE_EXHAUSTED", f"{MOST_ASKING} texts wait for their attention; try again."
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
            result = await asyncio.shield(task)  # a thread that computes goes on, whoever gives up
        finally:
            self._asking -= 1
        return await asyncio.to_thread(_as_json, result)

    def _done(self, task):
        self._one.release()
        if not task.cancelled():
            task.exception()  # seen, though nobody may wait for it


class AttentionServable:
    """Where an export looks: what the Batcher computes, alone, as of a Servable.

    The model, the export's weights without its head, is loaded at the first text.

    Args:
        servable: Servable of an export of kbert.
    """

    metadata = None  # so that nothing shares a batch with it

    def __init__(self, servable):
        self._folder = servable.folder
        self._read_in_text = ("[MASK]",) if servable.metadata["method"] == "fill_mask" else False
        self._most = min(servable.metadata["max_seq_length"], MOST_TOKENS)
        self._model = self._tokenizer = None

    def check(self, signature, inputs):
        """None: there are no rows."""

    def compute(self, signature, inputs):
        """dict of tokens (L,), weights (N, H, L, L) and notes; see `kbert.attention`.

        Args:
            inputs: dict of `text` and perhaps `text_pair`, (1,) each.

        Raises:
            RequestError: a text without a token, a folder that can no longer be read.
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
    """(ModelSpec, dict of texts) of the JSON of a request."""
    unknown = request.keys() - {"model", "version", "text", "text_pair"}
    if unknown:
        raise invalid(f"a request has model, version, text and text_pair; got {min(unknown)!r}.")
    texts = {name: request[name] for name in ("text", "text_pair") if name in request}
    for name, value in ({"model": None, "text": None} | request).items():
        if name != "version" and not is_text(value):
            raise invalid(f"{name} must be a text.")
        if name != "version" and len(value) > MOST_CHARACTERS:
            raise invalid(
                f"{name} must have {MOST_CHARACTERS:,} characters at most; got {len(value):,}."
            )
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = request["model"]
    if "version" in request:
        if type(request["version"]) is not int or not 0 <= request["version"] < 2**63:
            raise invalid("version must be a number.")
        spec.version.value = request["version"]
    return spec, texts


def _as_json(result):
    data = attention_data(result["tokens"], result["weights"])
    return json.dumps({**data, "notes": list(result["notes"])}).encode()


def _page():
    """(bytes of HTML, dict of headers) of the page, with what shows attention put in.

    The browser runs no script and takes no style but those of the page, which it knows by their
    hashes, makes no HTML of text (Trusted Types), and asks nobody but this server.
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
