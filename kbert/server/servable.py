"""One version of a model: a loaded SavedModel with its signatures and metadata."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES
from kbert.inference.backends import choose_backend
from kbert.server.errors import RequestError, invalid
from kbert.server.messages import with_serialized_examples
from kbert.server.openvino_functions import openvino_functions
from kbert.server.tensors import MAX_BYTES, Arrays, check_shape, examples_of_input, from_protos
from kbert.serving.saved_model import load_exported
from kbert.serving.signatures import DECODE, ENCODE, INTERNAL, parse_examples
from kbert.serving.warmup import WARMUP_FILE
from kbert.utils.formats import EXPORT_FILE, is_quantized, read_export

DEFAULT_SIGNATURE = "serving_default"
MAX_WARMUPS = 1000  # limit of TensorFlow Serving


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function of named tensors, with the specs of its inputs and outputs.

    function: function of tensors, passed by keyword; None for attention.
    inputs, outputs: dicts of name -> tf.TensorSpec.
    """

    name: str
    function: Callable[..., dict[str, tf.Tensor]] | None
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]


class Servable:
    """A loaded SavedModel.

    Args:
        folder: folder of the SavedModel, such as models/bert/1.
        backend: "auto", "tensorflow" or "openvino". TensorFlow computes every SavedModel that is
            not an export of kbert.

    Attributes:
        signatures: dict of name -> Signature. definitions: dict of name -> SignatureDef, as saved.
        backend: str, the backend in use. metadata: dict of `kbert.json`, or None if the SavedModel
            is not an export of kbert.
        folder: as given.
        rows: Signature that computes the rows of an export of kbert; see
            `kbert.tasks.endpoint.Endpoint`. decodes: whether their outputs must be decoded.

    Raises:
        UserError: the folder cannot be loaded with this backend.
    """

    metadata: dict[str, Any] | None
    rows: Signature
    decodes: bool

    def __init__(self, folder: str, backend: str = "auto") -> None:
        self.folder = folder
        self._extra, self.metadata = pathlib.Path(folder) / "assets.extra", None
        if (self._extra / EXPORT_FILE).is_file():
            self.metadata = read_export(self._extra)
            self._config = BertConfig.from_file(self._extra / "config.json")
        has_weights = self.metadata and not is_quantized(self.metadata)
        if backend == "openvino" and not has_weights:
            raise UserError(
                f"{folder} is not a float32 export of kbert; backend=openvino requires one."
            )
        self.backend: str = choose_backend(backend) if has_weights else "tensorflow"
        self.definitions: dict[str, meta_graph_pb2.SignatureDef] = _definitions(folder)
        if self.backend == "openvino":
            functions, self._computed = openvino_functions(load_exported(folder))
        else:
            functions = self._loaded(folder)
        self.signatures: dict[str, Signature] = {
            name: Signature(
                name, functions[name], _specs(definition.inputs), _specs(definition.outputs)
            )
            for name, definition in self.definitions.items()
            if name in functions
        }
        if self.metadata:
            self._steps = {n: self.signatures.pop(n) for n in INTERNAL if n in self.signatures}
            self.definitions = {n: self.definitions[n] for n in self.signatures}
            self.rows, self.decodes = self.signatures["from_ids"], DECODE in self._steps

    def __str__(self) -> str:
        what = f"signatures {', '.join(self.signatures)}"
        return f"{self.metadata['method'] if self.metadata else what}, computed by {self.backend}"

    def _loaded(self, folder):
        try:
            self._root = tf.saved_model.load(str(folder))  # keeps the weights alive
        except Exception as error:  # such as damaged files or unknown ops
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{folder} cannot be loaded: {reason}") from error
        return dict(self._root.signatures)

    def signature(self, name: str) -> Signature:
        """Returns the named Signature; "" is the default signature."""
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            there = ", ".join(sorted(self.signatures))
            raise RequestError(
                "FAILED_PRECONDITION", f"there is no signature {name!r}; there are {there}."
            )
        return self.signatures[name]

    def compute(self, signature: Signature, inputs: Arrays) -> dict[str, np.ndarray]:
        """Computes a Signature: maps a dict of input arrays to a dict of arrays."""
        with _rejecting():
            tensors = {
                name: tf.constant(inputs[name], spec.dtype)
                for name, spec in signature.inputs.items()
            }
            return {name: x.numpy() for name, x in signature.function(**tensors).items()}

    def texts(self, examples: Arrays) -> dict[str, np.ndarray]:
        """Parses tf.Examples: maps `inputs`, (B,) serialized, to the texts of `serving_default`."""
        axes = {n: spec.shape.rank for n, spec in self.signature("").inputs.items()}
        with _rejecting():
            parsed = parse_examples(tf.constant(examples["inputs"], tf.string), axes)
            texts = {name: text.numpy() for name, text in parsed.items()}
        _check_filled(texts)
        return texts

    def encode(self, texts: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns the features of the rows of texts, and arrays for `decode`."""
        extra = self.compute(self._steps[ENCODE], texts)
        return {name: extra.pop(name) for name in ENCODER_FEATURES}, extra

    def decode(self, texts: Arrays, extra: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the results of texts. extra: from `encode`. outputs: of its rows."""
        return self.compute(self._steps[DECODE], {**texts, **extra, **outputs})

    def select(self, signature: Signature, results: Arrays) -> dict[str, np.ndarray]:
        """Returns the outputs of a Signature that takes texts or tf.Examples, from the results."""
        if "classes" in signature.outputs:
            scores = results["probabilities"]
            labels = np.array([name.encode() for name in self.metadata["labels"]], object)
            return {"classes": np.broadcast_to(labels, scores.shape), "scores": scores}
        if "outputs" in signature.outputs:
            return {"outputs": results["score"]}
        return dict(results)

    def read(
        self,
        signature: Signature,
        protos: "Mapping[str, tensor_pb2.TensorProto]",
        most_bytes: int = MAX_BYTES,
        most_tokens: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Converts a map of TensorProtos to a dict of input arrays of a Signature.

        Args:
            most_bytes: maximum size of the values that tensors repeat instead of sending them.
            most_tokens: maximum number of tokens in a request to an export of kbert.
        """
        _check_names(signature, protos)
        most_values = most_tokens if self.metadata else None  # a text has more than one token
        return from_protos(protos, signature.inputs, most_bytes, most_values)

    def check(self, signature: Signature, inputs: Arrays) -> int | None:
        """Checks the inputs of a Signature; returns the number of rows, None if they differ."""
        _check_names(signature, inputs)
        for name, spec in signature.inputs.items():
            array = inputs[name]
            dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
            if dtype != spec.dtype:
                raise invalid(f"input {name} takes {spec.dtype.name}; got {dtype.name}.")
            check_shape(name, list(array.shape), spec)
        counts = {array.shape[0] if array.ndim else None for array in inputs.values()}
        if self.metadata and len(counts) > 1:
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise invalid(f"all inputs must have the same number of rows; got {sizes}.")
        if self.metadata and set(ENCODER_FEATURES) <= set(inputs):
            self._check_features(inputs)
        if self.metadata:
            _check_filled(inputs)
        return counts.pop() if len(counts) == 1 else None

    def _check_features(self, inputs):
        """Raises RequestError for out-of-range features, which a backend may not detect."""
        shapes = {array.shape for array in inputs.values()}
        if len(shapes) > 1:
            listing = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise invalid(f"inputs must have the same shape; got {listing}.")
        *_, L = shapes.pop()
        if not 1 <= L <= self._config.max_position_embeddings:
            most = self._config.max_position_embeddings
            raise invalid(f"sequences must have 1 to {most} tokens; got {L}.")
        sizes = {"input_ids": self._config.vocab_size, "attention_mask": 2}
        sizes["token_type_ids"] = self._config.type_vocab_size
        for name, size in sizes.items():
            array = inputs[name]
            if array.size and not 0 <= array.min() <= array.max() < size:
                got = f"{array.min()} to {array.max()}"
                raise invalid(f"input {name} must be 0 to {size - 1}; got {got}.")

    def warm_up(self) -> int:
        """Computes the warmup requests of the export; returns their number."""
        path, count = self._extra / WARMUP_FILE, 0
        if not path.is_file():
            return 0
        for record in tf.data.TFRecordDataset(str(path)).take(MAX_WARMUPS).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind not in ("predict_log", "classify_log", "regress_log"):
                continue  # multi_inference_log, for example, calls the same signatures
            request = getattr(log, kind).request
            signature = self.signature(request.model_spec.signature_name)
            if kind == "predict_log":
                inputs = self.read(signature, request.inputs)
            else:
                examples = with_serialized_examples(request.input)
                inputs = {"inputs": examples_of_input(examples, MAX_WARMUPS)}
            self.check(signature, inputs)
            self._run(signature, inputs)
            count += 1
        return count

    def _run(self, signature, inputs):
        """Calls every function that a Batcher may call for a request."""
        if not self.metadata or signature is self.rows:
            self.compute(signature, inputs)
        else:
            texts = self.texts(inputs) if "inputs" in inputs else inputs
            features, extra = self.encode(texts)
            outputs = self.compute(self.rows, features)
            if self.decodes:
                self.decode(texts, extra, outputs)


@contextlib.contextmanager
def _rejecting():
    """Raises RequestError for inputs that a graph rejects, or if memory is exhausted."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        raise invalid(_reason(error)) from None
    except UnicodeDecodeError:  # TensorFlow's own message quotes bytes of the inputs
        raise invalid("the inputs are not what the signature parses.") from None
    except tf.errors.ResourceExhaustedError as error:
        raise RequestError("RESOURCE_EXHAUSTED", f"out of memory: {_reason(error)}") from None


def _check_filled(inputs):
    for name, array in inputs.items():
        if 0 in array.shape[1:]:
            raise invalid(f"input {name} must not be empty; got the shape {list(array.shape)}.")


def _check_names(signature, inputs):
    if set(inputs) != set(signature.inputs):
        raise invalid(
            f"signature {signature.name} takes {', '.join(sorted(signature.inputs))}; got "
            f"{', '.join(sorted(inputs)) or 'nothing'}."
        )


def _definitions(folder: str) -> "dict[str, meta_graph_pb2.SignatureDef]":
    """Returns a dict of name -> SignatureDef of a SavedModel."""
    path = pathlib.Path(folder) / "saved_model.pb"
    try:
        with tf.io.gfile.GFile(str(path), "rb") as file:
            saved = saved_model_pb2.SavedModel.FromString(file.read())
        definitions = next(
            g for g in saved.meta_graphs if "serve" in g.meta_info_def.tags
        ).signature_def
    except (tf.errors.OpError, DecodeError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error
    except StopIteration:
        raise UserError(f"cannot read {path}: it has no graph with the tag 'serve'.") from None
    return {name: definitions[name] for name in sorted(definitions) if not name.startswith("__")}


def _specs(infos: "Mapping[str, meta_graph_pb2.TensorInfo]") -> dict[str, tf.TensorSpec]:
    """Returns a dict of name -> tf.TensorSpec of the TensorInfos of a SignatureDef."""
    return {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype), name)
        for name, info in sorted(infos.items())
    }


def _reason(error: tf.errors.OpError) -> str:
    """Extracts the line with the cause from a TensorFlow error, without the graph location."""
    lines = [line for line in error.message.splitlines() if line.strip()]
    node = next((i for i, line in enumerate(lines) if "{{node" in line), 0)
    line = lines[max(node - 1, 0)] if lines else type(error).__name__
    if line.startswith("assertion failed: "):  # its values follow in brackets
        line = " ".join(re.findall(r"\[(.*?)\]", line)) or line
    return " ".join(line.split())[:300]
