"""The signatures of a SavedModel, which TensorFlow Serving and TFX call by name."""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.features import ENCODER_FEATURES
from kbert.tasks.limits import with_text_limit_checks

if TYPE_CHECKING:
    from kbert.tasks.endpoint import Endpoint

MAX_BATCH_TEXTS = 32  # maximum number of texts in a batch that requests share in the graph
# The steps of `Endpoint` before and after `from_ids`; only kbert's server calls them.
ENCODE, DECODE = INTERNAL = ("internal_encode", "internal_decode")


def signatures(
    endpoint: "Endpoint", batch_timeout_ms: float = 0
) -> "dict[str, tf.types.experimental.ConcreteFunction[..., dict[str, tf.Tensor]]]":
    """Creates the signatures of an endpoint.

    - `serving_default` takes texts and returns the outputs in `output_spec`.
    - `from_ids` takes the `ENCODER_FEATURES`. It returns the same outputs, except for three methods
      whose outputs require the texts: for tag, `probabilities` (B, L, C) of C labels; for answer,
      `start_logits` and `end_logits` (B, L); for choose, `logits` (B, C) of C choices.
    - `from_examples` takes serialized tf.Examples whose features are named like the text inputs,
      and returns the same as `serving_default`.
    - `classify` and `regress` are for TensorFlow Serving's Classify and Regress, and also take
      tf.Examples. Models that predict labels of a text have `classify` (`classes` and `scores`,
      (B, C) each); models that predict one number have `regress` (`outputs`, (B,)).
    - `internal_encode` takes texts, and returns the features of their rows and tensors for
      `internal_decode`.
    - `internal_decode` takes the texts, these tensors and the outputs of `from_ids`, and returns
      the same as `serving_default`. It exists only if the endpoint decodes.

    Args:
        batch_timeout_ms: maximum time in milliseconds that a request with texts or examples waits
            for other requests to share a batch in the graph (for choose, requests with as many
            choices). The outputs of a response are padded for the whole batch. 0: no batching.

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
    """Returns the signatures in `INTERNAL`.

    Args:
        specs: dict of input name -> TensorSpec of the texts.
        outputs: outputs of `from_ids`, symbolic.
    """

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

    Texts with too many bytes or choices are rejected before they join a batch, because they would
    make all calls in the batch fail.
    """
    together = tf.nondifferentiable_batch_function(
        num_batch_threads=2,
        max_batch_size=MAX_BATCH_TEXTS,
        batch_timeout_micros=int(1000 * timeout_ms),
    )(lambda *texts: function(**dict(zip(specs, texts, strict=True))))
    return lambda **texts: together(
        *(with_text_limit_checks(texts, limits)[name] for name in specs)
    )


def traced(
    function: Callable[..., dict[str, tf.Tensor]], specs: Mapping[str, tf.TensorSpec]
) -> "tf.types.experimental.ConcreteFunction[..., dict[str, tf.Tensor]]":
    """Traces a function of named tensors; returns a concrete function."""
    keywords = tf.function(lambda **tensors: function(**tensors), autograph=False)
    return keywords.get_concrete_function(**specs)


def parse_examples(serialized: tf.Tensor, texts: Mapping[str, int]) -> dict[str, tf.Tensor]:
    """Parses the texts of B serialized tf.Examples: a dict of name -> (B,) or (B, C) string.

    `texts` has the number of axes of each text: 1, or 2 for choices.
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
