"""SavedModels with text inputs: reading the model, writing the export, and checking it."""

import dataclasses
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

import kbert
from kbert.errors import UserError
from kbert.inference.predictor import Predictor
from kbert.model.folder import ModelFolder
from kbert.model.models import BertModel
from kbert.serving.endpoints import FillMask, endpoints
from kbert.serving.signatures import signatures
from kbert.settings import TextLimits
from kbert.tasks import registry
from kbert.tasks.arguments import check_length
from kbert.utils import atomic
from kbert.utils.formats import (
    EXPORT_FILE,
    export_checksum,
    read_export,
    sha256_of,
    with_format,
)

if TYPE_CHECKING:
    from kbert.tasks.endpoint import Endpoint

SAMPLES = (
    "The house by the river was sold last week, and nobody knows who bought it.",
    "Ada Lovelace met Charles Babbage in London on 5 June 1833.",
    "",
    "Straße, naïve café, 北京大学, [SEP] (and [CLS]): 50 %!",
    "the same words again and again " * 40,
)


def load_endpoint(
    folder: str | os.PathLike[str],
    name: str | None = None,
    takes_pairs: bool | None = None,
    max_seq_length: int | None = None,
) -> "Endpoint":
    """Creates an Endpoint with the weights of a folder, in float32.

    Args:
        folder: path such as `RUN/finetuning/best`, in any format that `BertModel` reads; or a
            ModelFolder.
        name: a method in `endpoints()`; None: the method of the model's task or, without a task, of
            its head, else "embed".
        takes_pairs: for classify, whether each text has a second text; None: as in fine-tuning.
        max_seq_length: maximum number of tokens in a sequence; None: as for `kbert.Predictor`.

    Raises:
        UserError: the folder does not exist or lacks the head, the method cannot be exported, or
            the model does not support an argument.
    """
    folder = ModelFolder.of(folder)
    settings = registry.read_task_settings(folder) or {}
    own = registry.get_task(settings["task"]) if settings else None
    name = name or (own.method if own else registry.method_of_heads(folder.parts, folder.config))
    kind, task = endpoints().get(name), registry.task_of_method(name)
    if own and own.method == name:
        kind, task = own.endpoint, own
    if kind is None:
        raise UserError(
            f"the method {name} cannot be exported; choose one of {', '.join(endpoints())}."
        )
    predictor = Predictor.from_pretrained(folder, backend="keras", max_seq_length=max_seq_length)
    if name == "encode":
        predictor.model = load_encoder(folder)
        check_length(predictor.max_seq_length, predictor.model.config)
    else:
        predictor.load((task or kind).model_class)
    if name == "classify" and task is not own:
        task = registry.get_task(predictor.classifier())
        kind = task.endpoint
    if task and task.texts == (1, 2):
        if takes_pairs is None:
            takes_pairs = settings.get("takes_pairs", bool(own and own.takes_pairs))
    elif takes_pairs:
        raise UserError(
            f"--takes_pairs requires a model that classifies; {name} takes "
            f"{' and '.join(kind.texts)}."
        )
    return kind(predictor, task and predictor.task(task.name), takes_pairs)


def quantize_int8(endpoint: "Endpoint") -> None:
    """Quantizes the weight matrices and embeddings of an endpoint's model to int8, in place.

    Keras also quantizes the inputs of the matrix products, with one scale per token. In models with
    an MLM head, the embeddings stay float, because the head uses the word embeddings.
    """
    model = endpoint.model
    kinds = (keras.layers.Dense, *(() if hasattr(model, "mlm") else (keras.layers.Embedding,)))
    # Keras runs a garbage collection after each layer; this excludes all existing objects from it.
    gc.freeze()
    try:
        model.quantize("int8", filters=lambda layer: isinstance(layer, kinds))
    finally:
        gc.unfreeze()


def load_exported(folder: str | os.PathLike[str]) -> "Endpoint":
    """Loads the Endpoint that `save_endpoint` wrote to a folder, with its weights.

    Raises:
        UserError: another program wrote the SavedModel, its method is unknown, or a file is missing
            or damaged.
    """
    metadata = read_export(pathlib.Path(folder) / "assets.extra")
    name, length = metadata["method"], metadata["max_seq_length"]
    kinds = [k for k in registry.tasks().values() if k.endpoint and k.endpoint.name == name]
    method = kinds[0].method if kinds else name
    if method not in endpoints():
        raise UserError(
            f"{folder} is an export of the unknown method {name!r}; pass its --task_module."
        )
    optional = kinds and kinds[0].texts == (1, 2)
    pairs = "text_pair" in metadata["inputs"] if optional else None
    endpoint = load_endpoint(folder, method, pairs, length)
    endpoint.limits = TextLimits(**metadata["limits"])
    return endpoint


def load_encoder(folder: str | os.PathLike[str], **arguments: Any) -> BertModel:
    """Loads a BertModel with its pooler from a folder.

    Args:
        folder: as for `load_endpoint`.
        **arguments: arguments of `BertModel.from_pretrained`.

    Raises:
        UserError: the folder has no pooler, so `pooler_output` would be randomly initialized.
    """
    folder = ModelFolder.of(folder)
    if "bert/pooler" not in folder.parts:
        raise UserError(
            f"{folder} has no pooler, which the encoder's pooled output requires; models that "
            f"tag, answer or fill masks have none. Use --format=serving --method=embed, which "
            f"requires none."
        )
    return BertModel.from_pretrained(folder, **arguments)


def samples(endpoint: "Endpoint") -> dict[str, list[Any]]:
    """Returns texts for testing an endpoint, including unusual ones: dict of input name -> list.

    The lists have equal lengths. For fill_mask, each text has one [MASK]; for choose, two choices.
    """
    texts = [f"{text} [MASK]" if isinstance(endpoint, FillMask) else text for text in SAMPLES]
    if isinstance(endpoint, FillMask):
        texts[-1] = "the [MASK] of"
    others = texts[1:] + texts[:1]
    values = {"choices": [list(pair) for pair in zip(texts, others, strict=True)]}
    values |= {"text_pair": others, "question": others}
    return {name: values.get(name, texts) for name in endpoint.texts}


def save_endpoint(
    endpoint: "Endpoint", folder: str | os.PathLike[str], batch_timeout_ms: float = 0
) -> "dict[str, tf.types.experimental.ConcreteFunction[..., dict[str, tf.Tensor]]]":
    """Writes a SavedModel, with its metadata in `assets.extra/kbert.json`.

    The variables are tracked, so that converters find them. Because of the files that
    `save_settings` writes to `assets.extra`, `from_pretrained` can read the folder.

    Args:
        endpoint: Endpoint.
        folder: folder to write.
        batch_timeout_ms: see `kbert.serving.signatures.signatures`.

    Returns:
        dict of signature name -> concrete function.
    """
    root = tf.train.Checkpoint()
    root.variables = [variable.value for variable in endpoint.model.variables]
    root.tokenizers = endpoint.trackables()
    functions = signatures(endpoint, batch_timeout_ms)
    folder = pathlib.Path(folder)
    tf.saved_model.save(root, str(folder), signatures=functions)
    extra = folder / "assets.extra"
    extra.mkdir()
    save_settings(endpoint, extra)
    names = {id(weight): name for name, weight in endpoint.model.named_weights().items()}
    metadata = {
        "kbert": kbert.__version__,
        "method": endpoint.name,
        "inputs": list(endpoint.texts),
        "outputs": endpoint.output_spec,
        "labels": list(getattr(endpoint.task, "label_names", None) or []),
        "max_seq_length": endpoint.max_seq_length,
        "padded": endpoint.padded,
        "token_outputs": list(endpoint.token_outputs),
        "pad_id": endpoint.tokenizer.pad_id,
        "limits": dataclasses.asdict(endpoint.limits),
        "batch_timeout_ms": batch_timeout_ms,
        "weights": [names.get(id(variable)) for variable in endpoint.model.variables],
        "files": {name: sha256_of(folder / name) for name in _own_files(folder)},
    }
    metadata = with_format(EXPORT_FILE, metadata)
    metadata["checksum"] = export_checksum(metadata)
    atomic.write_json(extra / EXPORT_FILE, metadata)
    return functions


def _own_files(folder):
    """Returns the names of all files except the weights, which have their own checksums."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if not name.startswith("variables/")]


def save_settings(endpoint: "Endpoint", folder: pathlib.Path) -> None:
    """Writes the config, the vocabulary, the tokenizer's settings and, for a task, `task.json`."""
    endpoint.model.config.save(folder / "config.json")
    endpoint.tokenizer.save_pretrained(folder)
    if endpoint.predictor.settings:
        registry.save_task_settings(folder, endpoint.predictor.settings)


_LOAD_SCRIPT = """
import json, sys
import numpy as np
import tensorflow as tf
import tensorflow_text
request, answer, *folders = sys.argv[1:]
texts = {n: tf.constant(t) for n, t in json.load(open(request, encoding="utf-8")).items()}
values = [texts]
for folder in folders:
    signatures = tf.saved_model.load(folder).signatures
    values = [signatures["serving_default"](**values[0])]
if "internal_encode" in signatures:
    extra = signatures["internal_encode"](**texts)
    ids = signatures["from_ids"]
    outputs = ids(**{n: extra.pop(n) for n in ids.structured_input_signature[1]})
    if "internal_decode" in signatures:
        outputs = signatures["internal_decode"](**texts, **extra, **outputs)
    values.append(outputs)
pairs = [(f"{i}/{n}", x) for i, some in enumerate(values) for n, x in some.items()]
np.savez(answer, **{name: x.numpy() for name, x in pairs})
"""


def outputs_in_new_process(
    texts: Mapping[str, Sequence[Any]], *folders: str | os.PathLike[str]
) -> list[dict[str, np.ndarray]]:
    """Computes the outputs of SavedModels in a separate process with TensorFlow but without kbert.

    Args:
        texts: dict of input name -> list of texts for the first SavedModel.
        *folders: folders of SavedModels; each model takes the outputs of the previous one.

    Returns:
        The outputs of `serving_default` of the last SavedModel, a dict of arrays. If it has the
        signatures in `kbert.serving.signatures.INTERNAL`, a second dict follows: the outputs of
        the three steps in which kbert's server computes the same.

    Raises:
        UserError: the process failed; the message contains the end of its output.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request_file = pathlib.Path(scratch) / "request.json"
        answer_file = pathlib.Path(scratch) / "answer.npz"
        request_file.write_text(json.dumps(texts), encoding="utf-8")
        folders = [pathlib.Path(folder).absolute() for folder in folders]
        command = [sys.executable, "-c", _LOAD_SCRIPT, request_file, answer_file, *folders]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment)
        if done.returncode:
            raise UserError(
                f"the SavedModel fails in a separate process: "
                f"{' '.join(done.stderr.split())[-500:]}"
            )
        results: dict[str, dict[str, np.ndarray]] = {}
        with np.load(answer_file, allow_pickle=True) as arrays:
            for key, array in arrays.items():
                number, _, name = key.partition("/")
                results.setdefault(number, {})[name] = array
        return list(results.values())


def largest_difference(result: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> float:
    """Returns the largest difference between the floats in two dicts of arrays.

    Differences from values with a magnitude above 1 are relative to this magnitude. The result is
    inf if shapes or values of other types differ, or if a difference is NaN.

    Args:
        result: outputs of a SavedModel.
        expected: expected outputs; keys that only `result` has are ignored.
    """
    largest = 0.0
    for name, value in expected.items():
        actual, value = _decoded(result[name]), _decoded(value)
        if actual.shape != value.shape:
            return float("inf")
        if not value.size:
            continue
        if value.dtype.kind == "f":
            apart = np.abs(actual - value) / np.maximum(1, np.abs(value))
            if np.isnan(apart).any():
                return float("inf")
            largest = max(largest, float(apart.max()))
        elif not (actual == value).all():
            return float("inf")
    return largest


def _decoded(values):
    """Returns values as an array, with bytes decoded to str."""
    values = np.asarray(values)
    if values.dtype != object:
        return values
    return np.char.decode(values.astype(bytes), "utf-8", "replace")
