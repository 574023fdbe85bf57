"""The signatures of a SavedModel, which TensorFlow Serving and TFX call by name."""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.features import ENCODER_FEATURES
from kbert.tasks.limits import limited_texts

if TYPE_CHECKING:
    from kbert.tasks.endpoint import Endpoint

MOST_TEXTS = 32  # maximum number of texts in a batch that requests share in the graph
# The steps of `Endpoint` around `from_ids`, for kbert's server; not for clients.
ENCODE, DECODE = INTERNAL = ("internal_encode", "internal_decode")


def signatures(
    endpoint: "Endpoint", batch_timeout_ms: float = 0
) -> "dict[str, tf.types.experimental.ConcreteFunction[..., dict[str, tf.Tensor]]]":
    """Creates the signatures of an endpoint.

    `serving_default` takes text; `from_ids` takes the three features of `kbert.features`. Both
    return the outputs of `output_spec`, except for three methods whose outputs require the texts:
    for tag, `from_ids` returns `probabilities` (B, L, C) of C labels; for answer, `start_logits`
    and `end_logits` (B, L); for choose, `logits` (B, C) of C choices.
    `from_examples` takes serialized tf.Examples whose features are named like the text inputs, and
    returns the same as `serving_default`. For TensorFlow Serving's Classify and Regress, models
    that classify also have the signature `classify` (`classes` and `scores`, (B, C) each), and
    models that predict one number have `regress` (`outputs`, (B,)); both take tf.Examples, too.

    The signatures in `INTERNAL` are the other two steps of an `Endpoint`. `internal_encode` takes
    text, and returns the features of its rows and tensors for `internal_decode`, which also takes
    the texts and the outputs of `from_ids`, and exists only if the endpoint decodes.

    Args:
        endpoint: Endpoint.
        batch_timeout_ms: how long a request waits for other requests to share a batch in the graph.
            This applies to requests with texts or examples (with equal numbers of choices, if any);
            a response has as many columns as the batch needs. 0: no batching.

    Returns:
        dict of name -> concrete function of named tensors.
    """
    specs = {n: tf.TensorSpec([None] * axes, tf.string, n) for n, axes in endpoint.texts.items()}
    rank = 3 if endpoint.takes_choices else 2
    ids = {n: tf.TensorSpec([None] * rank, t, n) for n, (_, t) in ENCODER_FEATURES.items()}
    examples = {"inputs": tf.TensorSpec([None], tf.string, "inputs")}

    functions = {"from_ids": traced(lambda **features: endpoint.from_ids(features), ids)}
    functions |= _internal(endpoint, specs, functions["from_ids"].structured_outputs)
    from_texts = _composed(endpoint, functions)
    if batch_timeout_ms:
        from_texts = _in_batches(from_texts, specs, endpoint.limits, batch_timeout_ms)
    from_texts = traced(from_texts, specs)

    def from_examples(inputs):
        return from_texts(**parse_examples(inputs, endpoint.texts))

    def classify(inputs):
        scores = from_examples(inputs)["probabilities"]
        classes = tf.broadcast_to(tf.constant(endpoint.task.label_names), tf.shape(scores))
        return {"classes": classes, "scores": scores}

    functions = {"serving_default": from_texts, **functions}
    functions["from_examples"] = traced(from_examples, examples)
    if endpoint.standard_api == "classify":
        functions["classify"] = traced(classify, examples)
    if endpoint.standard_api == "regress":
        regress = traced(lambda inputs: {"outputs": from_examples(inputs)["score"]}, examples)
        functions["regress"] = regress
    return functions


def _internal(endpoint, specs, outputs):
    """Returns the signatures in `INTERNAL`. specs: of the texts. outputs: of `from_ids`."""

    def encode(**texts):
        features, extra = endpoint.encode_limited(**texts)
        return {**features, **extra}

    def decode(**tensors):
        parts = ({name: tensors[name] for name in names} for names in (specs, extra, outputs))
        return endpoint.decode(*parts)

    functions = {ENCODE: traced(encode, specs)}
    encoded = functions[ENCODE].structured_outputs
    extra = [name for name in encoded if name not in ENCODER_FEATURES]
    if endpoint.decodes:
        tensors = {**{name: encoded[name] for name in extra}, **outputs}
        others = {name: tf.TensorSpec(x.shape, x.dtype, name) for name, x in tensors.items()}
        functions[DECODE] = traced(decode, {**specs, **others})
    return functions


def _composed(endpoint, functions):
    """Returns `Endpoint.from_texts`, as calls of its traced steps."""
    steps = copy.copy(endpoint)

    def encode(**texts):
        extra = functions[ENCODE](**texts)
        return {name: extra.pop(name) for name in ENCODER_FEATURES}, extra

    steps.encode_limited = encode
    steps.from_ids = lambda features: functions["from_ids"](**features)
    steps.decode = lambda texts, *tensors: functions[DECODE](
        **{name: x for some in (texts, *tensors) for name, x in some.items()}
    )
    return steps.from_texts


def _in_batches(function, specs, limits, timeout_ms):
    """Wraps a function of texts in dynamic batching, so that several calls share a batch.

    Most texts that exceed a limit are rejected before they join a batch, because they would make
    all calls in the batch fail.
    """
    together = tf.nondifferentiable_batch_function(
        num_batch_threads=2, max_batch_size=MOST_TEXTS, batch_timeout_micros=int(1000 * timeout_ms)
    )(lambda *texts: function(**dict(zip(specs, texts, strict=True))))
    return lambda **texts: together(*(limited_texts(texts, limits)[name] for name in specs))


def traced(
    function: Callable[..., dict[str, tf.Tensor]], specs: Mapping[str, tf.TensorSpec]
) -> "tf.types.experimental.ConcreteFunction[..., dict[str, tf.Tensor]]":
    """Traces a function of named tensors; returns a concrete function."""
    keywords = tf.function(lambda **tensors: function(**tensors), autograph=False)
    return keywords.get_concrete_function(**specs)


def parse_examples(serialized: tf.Tensor, texts: Mapping[str, int]) -> dict[str, tf.Tensor]:
    """Parses the texts of tf.Examples; returns a dict of name -> (B,) or (B, C) string.

    Args:
        serialized: (B,) string, serialized tf.Examples.
        texts: dict of name -> number of axes: 1, or 2 for choices.
    """
    features = {
        name: tf.io.FixedLenFeature([], tf.string) if axes == 1 else tf.io.RaggedFeature(tf.string)
        for name, axes in texts.items()
    }
    parsed = tf.io.parse_example(serialized, features)
    for name, value in parsed.items():
        if isinstance(value, tf.RaggedTensor):
            lengths = value.row_lengths()
            same = tf.debugging.Assert(
                tf.reduce_all(lengths == lengths[:1]),
                [f"all examples must have the same number of {name}; got", lengths],
            )
            with tf.control_dependencies([same]):
                parsed[name] = value.to_tensor()
    return parsed
