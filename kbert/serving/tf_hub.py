"""Writes a preprocessor and an encoder with TF Hub's common text API.

Names and shapes follow the sections "Preprocessing text inputs" and "Transformer encoders" of the
API's page on text, so these models can replace TF Hub's BERT models.
"""

from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    import os

    from kbert.model.models import BertModel
    from kbert.tokenizer.tokenizer import BertTokenizer

NAMES = {
    "input_ids": "input_word_ids",
    "attention_mask": "input_mask",
    "token_type_ids": "input_type_ids",
}


def save_preprocessor(
    tokenizer: "BertTokenizer", seq_length: int, folder: "str | os.PathLike[str]"
) -> None:
    """Writes the preprocessor.

    Called with (B,) string, it returns the three inputs of the encoder, (B, seq_length) int32 each.
    Its attributes are functions, too:

    - `tokenize` converts (B,) string to a (B, None) int32 RaggedTensor of WordPiece ids.
    - `tokenize.get_special_tokens_dict()` returns the ids of the special tokens and the size of the
      vocabulary.
    - `bert_pack_inputs(segments, seq_length)` converts a list of one or two such RaggedTensors to
      the inputs of the encoder.

    Args:
        tokenizer: BertTokenizer.
        seq_length: length of a sequence in tokens.
        folder: folder to write.
    """
    root = tf.train.Checkpoint(tokenizer=tokenizer)
    text = tf.TensorSpec([None], tf.string, name="text")
    ragged = tf.RaggedTensorSpec([None, None], tf.int32)

    @tf.function(input_signature=[text], autograph=False)
    def call(text):
        return _renamed(tokenizer(text, max_length=seq_length))

    @tf.function(input_signature=[text], autograph=False)
    def tokenize(text):
        return tokenizer.tokenize(text)

    @tf.function(input_signature=[], autograph=False)
    def get_special_tokens_dict():
        ids = {
            "vocab_size": tokenizer.vocab_size,
            "padding_id": tokenizer.pad_id,
            "start_of_sequence_id": tokenizer.cls_id,
            "end_of_segment_id": tokenizer.sep_id,
            "mask_id": tokenizer.mask_id,
        }
        return {name: tf.constant(value, tf.int32) for name, value in ids.items()}

    usual = seq_length

    @tf.function(autograph=False)
    def pack(inputs, seq_length=usual):
        return _renamed(tokenizer.pack(inputs, seq_length))

    for segments in (1, 2):
        pack.get_concrete_function([ragged] * segments)
        pack.get_concrete_function([ragged] * segments, tf.TensorSpec([], tf.int32, "seq_length"))
    root.__call__ = call
    root.tokenize = tf.train.Checkpoint()
    root.tokenize.__call__ = tokenize
    root.tokenize.get_special_tokens_dict = get_special_tokens_dict
    root.bert_pack_inputs = tf.train.Checkpoint()
    root.bert_pack_inputs.__call__ = pack
    signatures = {"serving_default": call.get_concrete_function()}
    tf.saved_model.save(root, str(folder), signatures=signatures)


def save_encoder(model: "BertModel", folder: "str | os.PathLike[str]") -> None:
    """Writes the encoder; its weights are trainable, and `training=True` enables dropout.

    Called with a dict of `input_word_ids`, `input_mask` and `input_type_ids`, (B, L) int32 each, it
    returns a dict of float32 tensors: `pooled_output` (B, D), `sequence_output` (B, L, D),
    `encoder_outputs`, a list of N tensors (B, L, D), and `default`, which equals `pooled_output`.

    Args:
        model: BertModel with a pooler and `output_hidden_states`.
        folder: folder to write.
    """
    root = tf.train.Checkpoint()
    specs = {name: tf.TensorSpec([None, None], tf.int32, name) for name in NAMES.values()}

    def outputs(inputs, training):
        features = {kbert_name: inputs[name] for kbert_name, name in NAMES.items()}
        result = model(features, training=training)
        pooled, hidden = result["pooler_output"], result["hidden_states"][1:]
        return {
            "pooled_output": pooled,
            "default": pooled,
            "sequence_output": result["last_hidden_state"],
            "encoder_outputs": list(hidden),
        }

    @tf.function(autograph=False)
    def call(inputs, training=False):
        return outputs(inputs, training)

    for training in (False, True):
        call.get_concrete_function(specs, training=training)

    @tf.function(input_signature=list(specs.values()), autograph=False)
    def serve(*inputs):
        result = outputs(dict(zip(specs, inputs, strict=True)), False)
        return {name: result[name] for name in ("pooled_output", "sequence_output")}

    root.__call__ = call
    root.variables = [v.value for v in model.variables]
    root.trainable_variables = [v.value for v in model.trainable_variables]
    root.regularization_losses = []
    tf.saved_model.save(root, str(folder), signatures={"serving_default": serve})


def _renamed(features):
    return {NAMES[name]: value for name, value in features.items()}
