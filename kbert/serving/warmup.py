"""Warmup requests, which TensorFlow Serving runs before it reports a model as ready.

Without them, the first requests are slow, because TensorFlow initializes a graph at its first call.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.serving.signatures import INTERNAL

if TYPE_CHECKING:
    import os

WARMUP_FILE = "tf_serving_warmup_requests"
BATCH_SIZES = (1, 8)


def write_warmup(
    folder: "str | os.PathLike[str]",
    functions: "Mapping[str, tf.types.experimental.ConcreteFunction[..., dict[str, tf.Tensor]]]",
    texts: Mapping[str, Sequence[Any]],
    model_name: str,
) -> int:
    """Writes a request for each public signature and each of `BATCH_SIZES` to `assets.extra`.

    Args:
        folder: folder of a SavedModel.
        functions: signatures returned by `save_endpoint`.
        texts: dict of input name -> list of texts.
        model_name: name under which the SavedModel will be served.

    Returns:
        The number of requests.

    Raises:
        ImportError: tensorflow-serving-api is not installed.
    """
    from tensorflow_serving.apis import prediction_log_pb2 as logs

    path = pathlib.Path(folder) / "assets.extra" / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    count = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name in (name for name in functions if name not in INTERNAL):
            function = functions[name]
            for size in BATCH_SIZES:
                batch = {n: [rows[i % len(rows)] for i in range(size)] for n, rows in texts.items()}
                rows = zip(*batch.values(), strict=True)
                examples = [_example(dict(zip(batch, row, strict=True))) for row in rows]
                log = logs.PredictionLog()
                if name in ("classify", "regress"):
                    request = getattr(log, f"{name}_log").request
                    request.input.example_list.examples.extend(examples)
                else:
                    request = log.predict_log.request
                    specs = function.structured_input_signature[1]
                    for key, spec in specs.items():
                        value = batch.get(key)
                        if key == "inputs":
                            value = [example.SerializeToString() for example in examples]
                        elif value is None:  # input_ids, attention_mask or token_type_ids
                            value = np.full(
                                [size] + [8] * (len(spec.shape) - 1), key != "token_type_ids"
                            )
                        request.inputs[key].CopyFrom(tf.make_tensor_proto(value, spec.dtype))
                request.model_spec.name = model_name
                request.model_spec.signature_name = name
                writer.write(log.SerializeToString())
                count += 1
    return count


def _example(texts):
    """Converts a dict of str or lists of str to a tf.train.Example."""
    example = tf.train.Example()
    for name, value in texts.items():
        values = [value] if isinstance(value, str) else value
        example.features.feature[name].bytes_list.value.extend(v.encode() for v in values)
    return example
