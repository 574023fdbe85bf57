"""The signatures of an export, computed by OpenVINO inside a TensorFlow graph."""

import weakref
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kbert.features import ENCODER_FEATURES
from kbert.inference.backends import frozen_backend
from kbert.serving.signatures import signatures
from kbert.tasks.endpoint import Endpoint


def openvino_functions(
    endpoint: Endpoint,
) -> tuple[dict[str, Callable[..., dict[str, tf.Tensor]]], Callable[..., list[np.ndarray]]]:
    """Returns an Endpoint's signatures, computed by OpenVINO, and the function they call.

    The signatures hold only a weak reference to the function: TensorFlow keeps every function that
    a graph calls until the loading thread ends.
    """
    rank = 3 if endpoint.takes_choices else 2
    features = {name: np.ones([1, 2, 8][-rank:], np.int32) for name in ENCODER_FEATURES}
    specs = {name: tf.TensorSpec([None] * rank, tf.int32) for name in ENCODER_FEATURES}
    function = tf.function(endpoint.forward, [specs], autograph=False).get_concrete_function()
    outputs = dict(sorted(function.structured_outputs.items()))
    compute = frozen_backend("openvino", endpoint.model, endpoint.name)(endpoint.forward, features)

    def computed(*arrays):
        result = compute(dict(zip(ENCODER_FEATURES, arrays, strict=True)))
        return [result[name] for name in outputs]

    held = weakref.ref(computed)

    def compute_in_graph(features):
        tensors = tf.numpy_function(
            lambda *arrays: held()(*arrays),
            [features[name] for name in ENCODER_FEATURES],
            [x.dtype for x in outputs.values()],
        )
        for tensor, spec in zip(tensors, outputs.values(), strict=True):
            tensor.set_shape(spec.shape)
        return dict(zip(outputs, tensors, strict=True))

    endpoint.compute = compute_in_graph
    functions = signatures(endpoint)
    endpoint.model = endpoint.predictor.model = None  # OpenVINO has its own copy of the weights
    return functions, computed
