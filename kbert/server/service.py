"""The operations of the server, shared by gRPC and REST."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
)

from kbert.server.batching import Batcher
from kbert.server.errors import invalid
from kbert.server.models import Models
from kbert.server.servable import DEFAULT_SIGNATURE, Servable, Signature
from kbert.server.tensors import MAX_BYTES, Arrays

STATUS_FIELD = "signature_def"


class Service:
    """TensorFlow Serving's operations, on arrays and protocol messages."""

    def __init__(
        self, models: Models, batcher: Batcher, max_request_bytes: int = MAX_BYTES
    ) -> None:
        self._batcher = batcher
        self.models: Models = models
        self.max_request_bytes: int = max_request_bytes
        self.in_turn: Callable[..., Awaitable[Any]] = batcher.in_turn

    @property
    def most_tokens(self) -> int:
        """The maximum number of tokens of a request."""
        return self._batcher.most_tokens

    @property
    def most_examples(self) -> int:
        """The maximum number of examples in a request: each has at least [CLS] and [SEP]."""
        return self.most_tokens // 2

    def find(self, spec: "model_pb2.ModelSpec") -> tuple[int, Servable, Signature]:
        """Returns the (number, Servable, Signature) that a ModelSpec selects; see `Models.find`."""
        number, servable = self.models.find(spec)
        return number, servable, servable.signature(spec.signature_name)

    async def predict(
        self,
        servable: Servable,
        signature: Signature,
        inputs: Arrays,
        output_names: Sequence[str] = (),
        report_tokens: Callable[[int], object] | None = None,
    ) -> dict[str, np.ndarray]:
        """Computes a Signature: maps a dict of input arrays to a dict of arrays.

        Args:
            output_names: names of the outputs to return; empty for all.
            report_tokens: see `Batcher.compute`.
        """
        if len(output_names) > len(signature.outputs):
            raise invalid(
                f"{len(output_names):,} outputs are requested; signature {signature.name} has "
                f"{len(signature.outputs)}."
            )
        unknown = [name for name in output_names if name not in signature.outputs]
        if unknown:
            raise invalid(
                f"signature {signature.name} has no output {', '.join(unknown)}; it has "
                f"{', '.join(sorted(signature.outputs))}."
            )
        outputs = await self._batcher.compute(servable, signature, inputs, report_tokens)
        return {name: outputs[name] for name in output_names or sorted(outputs)}

    async def classify(
        self, servable: Servable, signature: Signature, examples: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the classes (bytes) and scores of (B,) serialized tf.Examples, (B, C) each."""
        names = ("classes", "scores")
        outputs = await self._of_examples(servable, signature, examples, names, "classify")
        shapes = {array.shape for array in outputs.values()}
        if len(shapes) > 1 or len(shape := shapes.pop()) != 2 or shape[0] != len(examples):
            raise invalid(
                f"signature {signature.name} must return classes and scores of shape (B, C)."
            )
        classes = outputs.get("classes", np.full(shape, b"", object))
        return classes, outputs.get("scores", np.zeros(shape, np.float32))

    async def regress(
        self, servable: Servable, signature: Signature, examples: np.ndarray
    ) -> np.ndarray:
        """Returns the values of (B,) serialized tf.Examples, (B,)."""
        outputs = await self._of_examples(servable, signature, examples, ("outputs",), "regress")
        if outputs["outputs"].size != len(examples):
            raise invalid(f"signature {signature.name} must return outputs of shape (B,).")
        return outputs["outputs"].ravel()

    async def _of_examples(self, servable, signature, examples, names, what):
        output_names = [name for name in names if name in signature.outputs]
        if set(signature.inputs) != {"inputs"} or not output_names:
            raise invalid(
                f"signature {signature.name} takes {', '.join(sorted(signature.inputs))} and "
                f"returns {', '.join(sorted(signature.outputs))}; {what} needs one that takes "
                f"inputs and returns {' and '.join(names)}. Set signature_name."
            )
        return await self.predict(servable, signature, {"inputs": examples}, output_names)

    def spec_of(self, spec: "model_pb2.ModelSpec", number: int) -> "model_pb2.ModelSpec":
        """Returns the ModelSpec for the response to a request with ModelSpec `spec`."""
        name = spec.signature_name or DEFAULT_SIGNATURE
        answer = model_pb2.ModelSpec(name=spec.name, signature_name=name)
        answer.version.value = number
        return answer

    def metadata(
        self, spec: "model_pb2.ModelSpec", fields: Sequence[str] = [STATUS_FIELD]
    ) -> "get_model_metadata_pb2.GetModelMetadataResponse":
        """Returns the GetModelMetadataResponse of a ModelSpec."""
        if fields[:2] != [STATUS_FIELD]:
            raise invalid(f"metadata_field must be {STATUS_FIELD!r}; got {list(fields[:9])}.")
        number, servable = self.models.find(spec)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in servable.definitions.items():
            definitions.signature_def[name].CopyFrom(definition)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name, answer.model_spec.version.value = spec.name, number
        answer.metadata[STATUS_FIELD].Pack(definitions)
        return answer

    def status(self, spec: "model_pb2.ModelSpec") -> "get_model_status_pb2.GetModelStatusResponse":
        """Returns the GetModelStatusResponse of a ModelSpec."""
        answer = get_model_status_pb2.GetModelStatusResponse()
        for version in self.models.status(spec):
            one = answer.model_version_status.add(version=version.number, state=version.state)
            one.status.error_message = version.error
            one.status.error_code = 2 if version.error else 0  # UNKNOWN, as in TensorFlow Serving
        return answer
